"""Repetition: how much of what is said was said before, in the same completion?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.metrics.measure import means
from visual_r1.rewards import repetition


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """What a text that is paid for its length may turn into.

    A careful text repeats itself too, in that it names the same things again: read the curves against their step 0.

    Returns:
        ``repetition/repeated_rate``: the mean over completions of the share of their n-grams that occurred earlier in
            the same completion, in [0, 1]; words and signs, case folded, as `visual_r1.rewards.repetition` counts them.
        ``repetition/looping_rate``: the share of completions of which more than half is such, in [0, 1].
    """

    ngram: int
    """Words in an n-gram."""

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        repeated = repetition.Repetition(ngram=self.ngram)
        shares = [repeated(rollout) for rollout in rollouts]
        return means({"repetition/repeated_rate": shares, "repetition/looping_rate": [one > 0.5 for one in shares]})
