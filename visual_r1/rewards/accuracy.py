"""Accuracy: is the answer right?"""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.parsing import is_correct


@dataclass(frozen=True)
class ChoiceAccuracy:
    """1.0 when the one answer names the solution's choice, else 0.0.

    Only the one ``<answer>`` pair counts: a right letter in the thought earns nothing, and two answers earn nothing, so
    the policy cannot hedge. Well-formedness is not asked for; ``WellFormed`` pays for that.

    Reference: "accuracy rewards", DeepSeek-R1, section 2.2.2 (arXiv 2501.12948).
    """

    def __call__(self, rollout: Rollout) -> float:
        return float(is_correct(rollout))
