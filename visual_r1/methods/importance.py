"""Another engine's tokens weighed by the trainer's probability over the engine's, without a pass of their own.

The weight needs the trainer's log-probs under the weights that sampled. trl 1.16 computes them in an extra pass over
all rollouts of a step; where a step is one update, the update's own pass has the very same ones.

Letters: B completions of a micro-batch, T tokens of its longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from visual_r1.methods.shared_prefix import has_dropout


def importance_ratio(
    trainer_logps: Tensor,
    engine_logps: Tensor,
    mask: Tensor,
    *,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> Tensor:
    """The weights of sampled tokens, [B, T], or of whole completions, [B, 1], as ``GRPOTrainer`` of trl 1.16 has them.

    A token's ratio is exp(trainer - engine), a completion's the product of its tokens' ratios. A token that the engine
    has no log-prob for (NaN) has the ratio 1, and so has one that the mask leaves out.

    Args:
        trainer_logps: log-probs of the tokens by the weights that sampled them, [B, T].
        engine_logps: the engine's own of the same tokens, [B, T].
        mask: 1 where a token counts, [B, T].
        mode: ``token_truncate``, ``token_mask``, ``sequence_truncate`` or ``sequence_mask``: whose ratio, and whether
            one out of range is brought to its end or to 0.
        clip_min: the least ratio in range; None: there is none.
        clip_max: the largest; None: there is none.

    Raises:
        ValueError: another mode.
    """
    level, _, rule = mode.partition("_")
    if level not in ("token", "sequence") or rule not in ("truncate", "mask"):
        raise ValueError(f"vllm_importance_sampling_mode={mode}: unknown")
    difference = torch.nan_to_num((trainer_logps - engine_logps) * mask, nan=0.0)
    if level == "sequence":
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = difference.exp()
    low = -math.inf if clip_min is None else clip_min
    high = math.inf if clip_max is None else clip_max
    if rule == "truncate":
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def can_reuse(model: torch.nn.Module, *, num_iterations: int, accumulation_steps: int, generation_steps: int) -> bool:
    """Whether each rollout's log-probs in its update are those under the weights that sampled it.

    They are where every rollout is learned from once, before the weights change, and nothing of the model is drawn.

    Args:
        model: in training mode, or wrapped.
        num_iterations: updates on each batch of rollouts.
        accumulation_steps: micro-batches of an update.
        generation_steps: micro-batches of a batch of rollouts.
    """
    return num_iterations == 1 and accumulation_steps % generation_steps == 0 and not has_dropout(model)


@dataclass
class _Compared:
    """The log-probs of a batch of rollouts, as far as its micro-batches have been compared, by their number."""

    differences: dict[int, Tensor] = field(default_factory=dict)
    """Absolute, of tokens that the engine has a log-prob for."""
    ratios: dict[int, Tensor] = field(default_factory=dict)
    """Of tokens or of completions."""

    def put(self, number: int, trainer_logps: Tensor, engine_logps: Tensor, mask: Tensor, ratio: Tensor) -> None:
        """A micro-batch; of one that is run in several passes the last counts, which has all log-probs."""
        mask = mask.bool()
        difference = (trainer_logps - engine_logps).abs()
        self.differences[number] = difference[mask & ~difference.isnan()]
        self.ratios[number] = ratio[mask] if ratio.shape == mask.shape else ratio.flatten()

    def curves(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """As trl has them, of the whole batch: a mean is the mean over processes of each one's mean."""
        differences, ratios = (torch.cat(list(parts.values())) for parts in (self.differences, self.ratios))
        if not len(differences):
            differences = differences.new_zeros(1)
        if not len(ratios):
            ratios = ratios.new_zeros(1)
        return {
            "sampling/sampling_logp_difference/mean": gather(differences.mean()).mean().item(),
            "sampling/sampling_logp_difference/max": gather(differences.max()).max().item(),
            "sampling/importance_sampling_ratio/min": gather(ratios.min()).min().item(),
            "sampling/importance_sampling_ratio/mean": gather(ratios.mean()).mean().item(),
            "sampling/importance_sampling_ratio/max": gather(ratios.max()).max().item(),
        }


class ImportanceTrainer(GRPOTrainer):
    """trl's trainer whose importance sampling takes the trainer's log-probs from the update, where `can_reuse` says so.

    Elsewhere, and where `skip_old_logps` is False, all is trl's own. Its rule, its arguments
    ``vllm_importance_sampling_*`` and its curves ``sampling/*`` are the same.
    """

    skip_old_logps: bool = False
    """No pass over the rollouts for log-probs that the update has as well."""
    _is_reusing: bool = False
    """The present rollouts have no weights yet."""
    _unweighed: dict[str, Any] | None = None
    """The micro-batch whose log-probs are being computed, as trl reads it."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._compared = _Compared()
        self._is_reusing = (
            self.skip_old_logps
            and self.use_vllm
            and self.vllm_importance_sampling_correction
            and can_reuse(
                self.model,
                num_iterations=self.num_iterations,
                accumulation_steps=self.args.gradient_accumulation_steps,
                generation_steps=self.args.steps_per_generation,
            )
        )
        if not self._is_reusing:
            return super()._generate_and_score_completions(inputs)
        self.vllm_importance_sampling_correction = False  # what trl asks before that pass
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.vllm_importance_sampling_correction = True

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self._is_reusing:
            return super()._compute_loss(model, inputs)
        self._unweighed = dict(inputs)
        try:
            return super()._compute_loss(model, self._unweighed)
        finally:
            self._unweighed = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._weigh(result[0].detach())
        return result

    def _weigh(self, logps: Tensor) -> None:
        """Puts the weights where trl looks for them, as soon as the update has its log-probs [B, T].

        Where it has those of some completions only, they alone bring a gradient, and their weights are right.
        """
        if (inputs := self._unweighed) is None:
            return
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        ratio = importance_ratio(
            logps,
            inputs["sampling_per_token_logps"],
            mask,
            mode=self.vllm_importance_sampling_mode,
            clip_min=self.vllm_importance_sampling_clip_min,
            clip_max=self.vllm_importance_sampling_clip_max,
        )
        inputs["importance_sampling_ratio"] = ratio
        self._compared.put(self._step, logps, inputs["sampling_per_token_logps"], mask, ratio)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; after the last of its rollouts, their curves."""
        loss = super().training_step(*args, **kwargs)
        if self._is_reusing and self._step % self.args.steps_per_generation == 0:
            for name, value in self._compared.curves(self.accelerator.gather).items():
                self._metrics["train"][name].append(value)
        return loss
