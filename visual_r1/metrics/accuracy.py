"""Accuracy, in all and by category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.metrics.measure import means
from visual_r1.parsing import is_correct


@dataclass(frozen=True)
class Accuracy:
    """How often the one answer names the solution, by the strict rule of the reward.

    Returns:
        ``accuracy``: share of all rollouts, in [0, 1]; every rollout counts the same.
        ``accuracy/<category>``: share of the category's rollouts.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        samples: dict[str, list[float]] = defaultdict(list)
        for rollout in rollouts:
            correct = is_correct(rollout)
            samples["accuracy"].append(correct)
            samples[f"accuracy/{rollout.example.category}"].append(correct)
        return means(samples)
