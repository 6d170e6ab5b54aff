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

    A group is a run of rollouts of one example, so the rollouts must arrive in group order. The same example twice in
    a row counts as one group. A group of one is never mixed.

    Returns:
        ``groups/all_correct``, ``groups/all_wrong``, ``groups/mixed``: shares of groups, summing to 1. Nothing when
        each example has one rollout, as on the probe: then there are no groups.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        groups = [
            [is_correct(rollout) for rollout in group]
            for _, group in groupby(rollouts, key=lambda rollout: rollout.example.id)
        ]
        if all(len(group) == 1 for group in groups):
            return {}
        return means(
            {
                "groups/all_correct": [all(group) for group in groups],
                "groups/all_wrong": [not any(group) for group in groups],
                "groups/mixed": [any(group) and not all(group) for group in groups],
            }
        )
