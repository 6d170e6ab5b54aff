"""The fixed held-out prompts on which every method is watched while it trains, from step 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from visual_r1.examples import Example, Rollout
from visual_r1.metrics.measure import Metric, measure
from visual_r1.models import Policy
from visual_r1.rewards.trl_function import TrlFunction
from visual_r1.rewards.weighted import WeightedReward, score
from visual_r1.rollout.engine import RolloutEngine, Sampling
from visual_r1.rollout.sharing import sample_together


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Samples the policy on the same prompts with the same seed at every visit.

    SFT samples nothing by itself, and GRPO samples shuffled training prompts; only here are their accuracy, length and
    reflection measured alike.
    """

    examples: Sequence[Example]
    engine: RolloutEngine
    sampling: Sampling
    metrics: Sequence[Metric]
    rewards: Sequence[WeightedReward]
    every_steps: int
    seed: int = 0

    def is_due(self, step: int, last_step: int) -> bool:
        """Whether the probe is visited after a step: the first, every `every_steps`-th and the last."""
        return step % self.every_steps == 0 or step == last_step

    def measure(self, policy: Policy) -> tuple[dict[str, float], list[Rollout]]:
        """Values named ``probe/...`` and the rollouts that they were measured on.

        All processes sample, and rank 0 measures; the others get nothing.
        """
        rollouts = sample_together(self.engine, policy, self.examples, sampling=self.sampling, seed=self.seed)
        if not rollouts:
            return {}, []
        # They came without the images, which a reward may look at and the trackers show.
        rollouts = [
            replace(rollout, example=policy.fitted(self.examples[index])) for index, rollout in enumerate(rollouts)
        ]
        values = measure(self.metrics, rollouts)
        # A user's function with trl's signature scores trl's batches only, so it has a curve in training alone.
        own = [reward for reward in self.rewards if not isinstance(reward.function, TrlFunction)]
        scores = [score(own, rollout) for rollout in rollouts]
        values |= {f"rewards/{reward.name}/mean": fmean(row[reward.name] for row in scores) for reward in own}
        values["completions/mean_length"] = fmean(rollout.num_tokens for rollout in rollouts)
        return {f"probe/{name}": value for name, value in values.items()}, rollouts
