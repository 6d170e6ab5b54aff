"""Hard: right and well formed, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.rewards.accuracy import ChoiceAccuracy
from visual_r1.rewards.format import WellFormed


@dataclass(frozen=True)
class Hard:
    """1.0 when the rollout is both right and well formed, else 0.0: no credit for the format alone.

    Reference: the hard formatting result reward of Vision-R1 (arXiv 2503.06749).
    """

    def __call__(self, rollout: Rollout) -> float:
        return WellFormed()(rollout) * ChoiceAccuracy()(rollout)
