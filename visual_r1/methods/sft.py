"""Supervised fine-tuning: the baseline that RL is measured against, done right, and as the paper's code did it.

Done right, the loss is on the completion alone and the prompt is the one of rollout and evaluation. The paper's code
(its ``sft.py``) trained on the question's tokens too, under another prompt than it evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from visual_r1.examples import Example
from visual_r1.methods.arguments import check_arguments, check_values
from visual_r1.methods.checkpoints import CheckpointingTrainer
from visual_r1.methods.schedule import HorizonTrainer, check_schedule
from visual_r1.methods.training import (
    RESERVED,
    TrainingContext,
    check_batches,
    load_weights,
    micro_batches,
    on_one_gpu,
    train_from_last_checkpoint,
    trainer_arguments,
    training_rows,
    watch,
)
from visual_r1.models import Policy
from visual_r1.prompts import SFT_REFERENCE
from visual_r1.rollout.gathering import is_split

_LOSSES = ("completion", "text")
_IMITATED = ("answer", "thought")


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Trains a policy to answer at once, with the right letter in its tags, or to reason first as the data does.

    Raises:
        ValueError: an unknown loss, prompt or text to imitate, or the examples of a step do not divide among the
            processes and into micro-batches.
    """

    examples_per_step: int
    """Examples an optimizer step sees, over all processes."""
    micro_batch_size: int
    """Examples in one forward and backward pass of one process."""
    trl: Mapping[str, Any]
    """Arguments of ``trl.SFTConfig`` under trl's names."""
    schedule_steps: int | None = None
    """Optimizer steps over which the learning rate's schedule is laid out; None: those of the training."""
    loss_on: str = "completion"
    """``completion``: its tokens with its end token, each of the step's weighing the same. ``text``: the prompt's too,
    all but images, averaged over each micro-batch: over each example where that holds one."""
    imitate: str = "answer"
    """``answer``: the solution alone. ``thought``: `Example.thought` before it, where the data has one."""
    prompt: str | None = None
    """``sft_reference`` asks, from this training on, as the paper's SFT did; None keeps the policy's own prompt."""

    def __post_init__(self) -> None:
        if self.loss_on not in _LOSSES:
            raise ValueError(f"method.loss_on={self.loss_on}: unknown, expected one of {list(_LOSSES)}")
        if self.prompt not in (None, SFT_REFERENCE.wording):
            raise ValueError(f"method.prompt={self.prompt}: unknown, expected {SFT_REFERENCE.wording} or null")
        if self.imitate not in _IMITATED:
            raise ValueError(f"method.imitate={self.imitate}: unknown, expected one of {list(_IMITATED)}")
        if self.imitate == "thought" and self.prompt is not None:
            raise ValueError(
                f"method.imitate=thought method.prompt={self.prompt}: the paper's SFT imitates bare answers alone"
            )
        check_schedule(self.schedule_steps, self.trl.get("max_steps", 1))
        check_batches(
            self.examples_per_step,
            self.micro_batch_size,
            whole=f"method.examples_per_step={self.examples_per_step}: the examples",
            fix="method.examples_per_step",
        )

    def check(self) -> None:
        """Refuses wrong arguments of trl before a model is loaded."""
        check_arguments(SFTConfig, self.trl, reserved=RESERVED)
        check_values(SFTConfig, self.trl)

    def train(self, policy: Policy, context: TrainingContext) -> tuple[Policy, int]:
        """Runs SFT from the policy, or from the run's last checkpoint."""
        if self.prompt is not None:
            policy = policy.with_style(SFT_REFERENCE)
        stop_at_turn_end(policy)
        trainer = CompletionSftTrainer(policy=policy, context=context, method=self)
        num_steps = train_from_last_checkpoint(trainer, context)
        return replace(policy, model=trainer.accelerator.unwrap_model(trainer.model)), num_steps

    def config(self, context: TrainingContext) -> SFTConfig:
        """Trl's configuration of this run."""
        config = SFTConfig(
            **trainer_arguments(context),
            per_device_train_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=micro_batches(self.examples_per_step, self.micro_batch_size),
            remove_unused_columns=False,
            completion_only_loss=self.loss_on == "completion",
            max_length=None,  # cutting a row could cut its image's tokens
            **self.trl,
        )
        return on_one_gpu(config)


class CompletionSftTrainer(HorizonTrainer, CheckpointingTrainer, SFTTrainer):
    """trl's trainer on our prompts, probed like every other method."""

    def __init__(self, *, policy: Policy, context: TrainingContext, method: Sft) -> None:
        self.schedule_steps = method.schedule_steps
        super().__init__(
            model=policy.model,
            args=method.config(context),
            train_dataset=training_rows(
                policy, context.examples, lambda example: sft_row(policy, example, imitate=method.imitate)
            ),
            processing_class=policy.processor,
        )
        if method.loss_on == "completion":
            self.data_collator = ending_at(self.data_collator, policy.end_token_ids)
        else:
            self.data_collator = without(self.data_collator, policy.image_token_ids)
            # Qwen2-VL of transformers 4.49 took no count of the step's labels: each micro-batch is a mean of its own.
            self.model_accepts_loss_kwargs = False
        watch(self, replace(policy, model=self.accelerator.unwrap_model(self.model)), context, description="SFT")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: what a checkpoint is stands in the run's own record."""

    def _run_epoch(self, **arguments: Any) -> None:
        # The curve num_tokens; resumed, trl 1.16 would count from 0 again.
        counts = [row["num_tokens"] for row in self.state.log_history if "num_tokens" in row]
        self._total_train_tokens = int(counts[-1]) if counts else 0
        super()._run_epoch(**arguments)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if is_split(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # of FSDP, by the names in memory
        else:
            load_weights(model, resume_from_checkpoint)


def ending_at(collate: Callable[[Any], dict[str, Any]], end_token_ids: Collection[int]) -> Callable[[Any], Any]:
    """A collator whose labels stop at a completion's end token.

    A chat template writes a line break after it, which no rollout gets to: no policy should be trained to go on there.
    """

    def collated(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        is_end = torch.isin(batch["labels"], torch.tensor(list(end_token_ids))).int()
        batch["labels"] = batch["labels"].masked_fill(is_end.cumsum(dim=1) > is_end, -100)
        return batch

    return collated


def without(collate: Callable[[Any], dict[str, Any]], token_ids: Collection[int]) -> Callable[[Any], Any]:
    """A collator that labels none of these tokens, wherever they stand."""

    def collated(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        is_left_out = torch.isin(batch["labels"], torch.tensor(list(token_ids)))
        batch["labels"] = batch["labels"].masked_fill(is_left_out, -100)
        return batch

    return collated


def turn_end(policy: Policy) -> str:
    """What the chat template writes after an assistant's message: Qwen's ends the turn, a role-less one is silent."""
    answer = "answer"
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "question"), ("assistant", answer))
    ]
    return policy.processor.apply_chat_template(messages, tokenize=False).rpartition(answer)[2]


def stop_at_turn_end(policy: Policy) -> None:
    """Declares the token that ends a turn an end token of the checkpoint, where it is none.

    Otherwise a base checkpoint that learns to chat would end its turn and be made to go on, in whatever loads it.
    """
    for token in policy.tokenizer(turn_end(policy))["input_ids"][:1]:
        if token not in policy.end_token_ids:
            policy.model.generation_config.eos_token_id = [*policy.end_token_ids, token]


def sft_row(policy: Policy, example: Example, *, imitate: str = "answer") -> dict[str, Any]:
    """A row in trl's prompt-completion form; its images go first in the prompt, as everywhere."""
    style = policy.style
    completion = style.worked(example) if imitate == "thought" else style.answer_only(example)
    if not turn_end(policy):
        completion += policy.tokenizer.eos_token  # trl adds no end token to a conversation
    return {
        "prompt": [{"role": "user", "content": style.text(example)}],
        "completion": [{"role": "assistant", "content": completion}],
        "images": list(example.images),
    }
