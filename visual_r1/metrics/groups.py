"""Groups: how many carry a gradient?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from visual_r1.examples import Rollout
from visual_r1.metrics.measure import means
from visual_r1.parsing import is_correct


@dataclass(frozen=True)
class Groups:
    """Shares of groups by their right answers; in a group that is all right or all wrong, accuracy has no gradient.

    A group is a run of rollouts of one example, so the rollouts must arrive in group order. A group of one is never
    mixed. The same example twice in a row counts as one group.

    Returns:
        ``groups/all_correct``, ``groups/all_wrong``, ``groups/mixed``: shares of groups, summing to 1.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        groups = [
            {is_correct(rollout) for rollout in group}
            for _, group in groupby(rollouts, key=lambda rollout: rollout.example.id)
        ]
        return means(
            {
                "groups/all_correct": [group == {True} for group in groups],
                "groups/all_wrong": [group == {False} for group in groups],
                "groups/mixed": [len(group) == 2 for group in groups],
            }
        )
