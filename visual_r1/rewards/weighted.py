"""The reward of a run is a weighted sum of scores: here are its terms; trl's trainer takes the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.rewards.trl_function import TrlFunction


@dataclass(frozen=True, kw_only=True)
class WeightedReward:
    """A reward and its share of the sum.

    Weight 0 keeps the curve and drops the gradient; a negative weight makes a penalty.

    Raises:
        ValueError: the name is empty or the weight not finite.
    """

    name: str
    """Names the curve, ``rewards/<name>/mean``."""
    weight: float
    function: Callable[[Rollout], float] | TrlFunction

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a reward needs a name: its curve is rewards/<name>/mean")
        if not math.isfinite(self.weight):
            raise ValueError(f"reward {self.name}: the weight is {self.weight}, expected a finite number")


def score(rewards: Sequence[WeightedReward], rollout: Rollout) -> dict[str, float]:
    """Each reward's score of one rollout, by name, not yet weighted.

    Raises:
        TypeError: a reward is a ``TrlFunction``, which only trl's trainer can call.
        ValueError: two rewards share a name, or a score is not in [0, 1].
    """
    scores: dict[str, float] = {}
    for reward in rewards:
        if isinstance(reward.function, TrlFunction):
            raise TypeError(f"reward {reward.name}: {reward.function.path} scores trl's batches, not a rollout")
        if reward.name in scores:
            raise ValueError(f"two rewards are named {reward.name}")
        scores[reward.name] = reward.function(rollout)
        if not 0 <= scores[reward.name] <= 1:  # also true of NaN
            raise ValueError(f"reward {reward.name}: the score is {scores[reward.name]}, expected 0 to 1")
    return scores
