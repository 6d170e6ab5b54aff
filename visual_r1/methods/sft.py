"""Supervised fine-tuning on the same prompts: the baseline that RL is measured against, done right.

The paper's code trained on the question's tokens too, under another prompt than it evaluated (its ``sft.py``); here the
loss is on the completion alone and the prompt is the one of rollout and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from visual_r1 import distributed
from visual_r1.examples import Example
from visual_r1.methods.arguments import check_arguments, check_values
from visual_r1.methods.schedule import HorizonTrainer, check_schedule
from visual_r1.methods.training import (
    RESERVED,
    TrainingContext,
    check_batches,
    load_weights,
    micro_batches,
    train_from_last_checkpoint,
    trainer_arguments,
    training_rows,
    watch,
)
from visual_r1.models import Policy


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Trains a policy to answer at once: the right letter in its tags.

    Raises:
        ValueError: the examples of a step do not divide among the processes and into micro-batches.
    """

    examples_per_step: int
    """Examples an optimizer step sees, over all processes."""
    micro_batch_size: int
    """Examples in one forward and backward pass of one process."""
    trl: Mapping[str, Any]
    """Arguments of ``trl.SFTConfig`` under trl's names."""
    schedule_steps: int | None = None
    """Optimizer steps over which the learning rate's schedule is laid out; None: those of the training."""

    def __post_init__(self) -> None:
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
        trainer = CompletionSftTrainer(policy=policy, context=context, method=self)
        num_steps = train_from_last_checkpoint(trainer, context.folder)
        return replace(policy, model=trainer.accelerator.unwrap_model(trainer.model)), num_steps

    def config(self, context: TrainingContext) -> SFTConfig:
        """Trl's configuration of this run."""
        return SFTConfig(
            **trainer_arguments(context),
            per_device_train_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=micro_batches(self.examples_per_step, self.micro_batch_size),
            remove_unused_columns=False,
            completion_only_loss=True,
            max_length=None,  # cutting a row could cut its image's tokens
            **self.trl,
        )


class CompletionSftTrainer(HorizonTrainer, SFTTrainer):
    """trl's trainer on our prompts, probed like every other method."""

    def __init__(self, *, policy: Policy, context: TrainingContext, method: Sft) -> None:
        self.schedule_steps = method.schedule_steps
        super().__init__(
            model=policy.model,
            args=method.config(context),
            train_dataset=training_rows(policy, context.examples, lambda example: sft_row(policy, example)),
            processing_class=policy.processor,
        )
        self.data_collator = ending_at(self.data_collator, policy.end_token_ids)
        watch(self, replace(policy, model=self.accelerator.unwrap_model(self.model)), context, description="SFT")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: what a checkpoint is stands in the run's own record."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Before rank 0 writes the file that makes a checkpoint whole.
        distributed.meet()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model if model is None else model, resume_from_checkpoint)


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


def sft_row(policy: Policy, example: Example) -> dict[str, Any]:
    """A row in trl's prompt-completion form; its images go first in the prompt, as everywhere."""
    completion = policy.style.answer_only(example)
    if policy.style.chat_template is not None:
        # A role-less template ends nothing, and trl adds no end token to a conversation.
        completion += policy.tokenizer.eos_token
    return {
        "prompt": [{"role": "user", "content": policy.style.text(example)}],
        "completion": [{"role": "assistant", "content": completion}],
        "images": list(example.images),
    }
