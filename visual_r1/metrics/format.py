"""Format: can the completion be read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.metrics.measure import means
from visual_r1.parsing import is_empty, named_letter, parse_thought
from visual_r1.rewards.format import WellFormed


@dataclass(frozen=True)
class Format:
    """How often completions have the form asked for, each a share of all rollouts, in [0, 1].

    Returns:
        ``format/well_formed_rate``: the score of the format reward.
        ``format/empty_thought_rate``: the thought is closed and holds no letter and no digit. A rollout without a
            closed thought is not among them; it is missing from the well-formed ones.
        ``format/parse_rate``: one answer that names one choice, right or wrong.
        ``format/truncated_rate``: cut by the length limit.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        well_formed = WellFormed()
        thoughts = [parse_thought(rollout.text) for rollout in rollouts]
        return means(
            {
                "format/well_formed_rate": [well_formed(rollout) for rollout in rollouts],
                "format/empty_thought_rate": [thought is not None and is_empty(thought) for thought in thoughts],
                "format/parse_rate": [named_letter(rollout) is not None for rollout in rollouts],
                "format/truncated_rate": [rollout.is_truncated for rollout in rollouts],
            }
        )
