"""Format: does the completion have the form of the R1-Zero template?"""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.parsing import is_well_formed


@dataclass(frozen=True)
class WellFormed:
    """1.0 for exactly ``<think>thought</think> <answer>answer</answer>``, else 0.0.

    ``parsing.is_well_formed`` holds the rule. A truncated rollout scores 0.0 whatever stands in it: the policy did not
    choose to stop there.

    Reference: "format rewards", DeepSeek-R1, section 2.2.2 (arXiv 2501.12948).
    """

    def __call__(self, rollout: Rollout) -> float:
        return float(not rollout.is_truncated and is_well_formed(rollout.text))
