"""The trainer of GRPO's relatives that sample until enough groups can teach something."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.data_utils import prepare_multimodal_messages

from visual_r1.examples import Rollout
from visual_r1.methods.grpo import Grpo, RolloutGrpoTrainer, mixed_seed
from visual_r1.methods.resampling import Batch, Group, Resampling, collect, fresh_prompts
from visual_r1.methods.training import TrainingContext
from visual_r1.metrics.measure import measure
from visual_r1.models import Policy
from visual_r1.rollout.engine import Completion


class ResamplingTrainer(RolloutGrpoTrainer):
    """`RolloutGrpoTrainer` on chosen groups.

    The groups are those of all processes together, shared out anew.

    ``reward`` and every other curve of rollouts cover the groups that a step learns from, and so do the rollouts shown;
    over all that the step sampled, the same numbers begin with ``sampled/``. ``groups/num_attempts`` counts the batches
    that a step sampled, ``groups/num_prompts`` their prompts; ``groups/informative`` is the share of those that could
    teach something. Compare methods where they have sampled as much: ``num_tokens`` counts every token since the run
    began, learned from or not.
    """

    def __init__(self, *, policy: Policy, context: TrainingContext, method: Grpo) -> None:
        if method.resampling is None:
            raise ValueError("method.resampling: missing")
        self._resampling: Resampling = method.resampling
        self._batch = Batch(sampled=(), trained=(), num_attempts=0)
        super().__init__(policy=policy, context=context, method=method)

    def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        prompts = gather_object([row["index"] for row in inputs])[:: self.num_generations]
        fresh = fresh_prompts(
            prompts,
            num_examples=len(self.train_dataset),
            max_attempts=self._resampling.max_attempts,
            seed=mixed_seed(self.args.seed, self.state.global_step),
        )
        self._batch = collect(self._resampling, prompts, fresh, self._attempt)
        for name, value in self._measured().items():
            self._metrics["train"][name].append(value)
        # trl adds the tokens that are learned from.
        self.state.num_input_tokens_seen += _num_tokens(self._batch.sampled) - _num_tokens(self._batch.trained)
        return self._rows([group.index for group in self._batch.trained])

    def _completions(self) -> list[Completion]:
        return self._share([one for group in self._batch.trained for one in group.completions])

    def _judged(self, *_args: Any, **_kwargs: Any) -> tuple[list[Rollout], torch.Tensor]:
        # By the scores that they were chosen by.
        rollouts = [rollout for group in self._batch.trained for rollout in group.rollouts]
        scores = [row for group in self._batch.trained for row in group.scores]
        return rollouts, torch.tensor(scores, device=self.accelerator.device)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        # Groups without a gradient fill the batch; the loss is the mean over the others, however many there are. By
        # groups: exact for loss_type=grpo; a loss that averages over tokens counts the fillers' tokens all the same.
        return super()._compute_loss(model, inputs) / (self._batch.gradient_share or 1.0)

    def _attempt(self, prompts: Sequence[int]) -> list[Group]:
        """The scored groups of some rows of the training data, rolled out on all processes together."""
        rows = self._rows(prompts)
        completions = self._sample([row["example"] for row in rows])
        ids = [list(completion.token_ids) for completion in completions]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        rollouts, scores = super()._judged(
            rows,
            [prepare_multimodal_messages(row["prompt"], images=row["images"]) for row in rows],
            [[{"role": "assistant", "content": text}] for text in texts],
            ids,
        )
        rewards = (scores * self.reward_weights.to(scores.device)).nansum(dim=1)
        rewards = rewards.masked_fill(scores.isnan().all(dim=1), torch.nan).tolist()
        completions = gather_object(completions)
        groups = []
        for number, index in enumerate(prompts):
            own = slice(number * self.num_generations, (number + 1) * self.num_generations)
            groups.append(
                Group(
                    index=index,
                    completions=tuple(completions[own]),
                    rollouts=tuple(rollouts[own]),
                    scores=tuple(map(tuple, scores[own].tolist())),
                    rewards=tuple(rewards[own]),
                )
            )
        return groups

    def _rows(self, prompts: Sequence[int]) -> list[dict[str, Any]]:
        """This process's share of the training data's rows, each repeated for its group."""
        repeated = [index for index in prompts for _ in range(self.num_generations)]
        return [self.train_dataset[index] for index in self._share(repeated)]

    def _share(self, everything: list[Any]) -> list[Any]:
        """This process's part of what all processes have together."""
        size = len(everything) // self.accelerator.num_processes
        start = self.accelerator.process_index * size
        return everything[start : start + size]

    def _measured(self) -> dict[str, float]:
        """The numbers of what the step has sampled."""
        sampled = self._batch.sampled
        rollouts = [rollout for group in sampled for rollout in group.rollouts]
        rewards = [reward for group in sampled for reward in group.rewards if reward == reward]  # not NaN
        values = {f"sampled/{name}": value for name, value in measure(self._context.metrics, rollouts).items()}
        if rewards:
            values["sampled/reward"] = fmean(rewards)
        return values | {
            "sampled/completions/mean_length": fmean(rollout.num_tokens for rollout in rollouts),
            "groups/num_attempts": float(self._batch.num_attempts),
            "groups/num_prompts": float(len(sampled)),
            "groups/informative": fmean(map(self._resampling.is_informative, sampled)),
        }


def _num_tokens(groups: Sequence[Group]) -> int:
    """Tokens of the groups' prompts and completions, as trl counts them: a prompt once for each completion."""
    return sum(len(one.prompt_ids) + len(one.token_ids) for group in groups for one in group.completions)
