"""Length penalty: efficiency, the share of the token budget that a right answer left unused."""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.parsing import is_correct


@dataclass(frozen=True, kw_only=True)
class LengthPenalty:
    """``1 - num_tokens / limit_tokens`` for a right answer, never below 0; 0.0 for any other rollout.

    The score falls with length, so the weight is positive. A wrong rollout earns nothing by being short: among wrong
    completions the empty one would otherwise be the best.

    Reference: the same asymmetry in the length reward of Kimi k1.5, section 2.3.3 (arXiv 2501.12599), there relative to
    the shortest and longest completion of a group; here absolute, because a reward sees one rollout.

    Raises:
        ValueError: ``limit_tokens`` is not positive.
    """

    limit_tokens: int
    """The length that earns nothing; the completion limit of the run."""

    def __post_init__(self) -> None:
        if self.limit_tokens <= 0:
            raise ValueError(f"limit_tokens is {self.limit_tokens}, expected a positive number of tokens")

    def __call__(self, rollout: Rollout) -> float:
        if not is_correct(rollout):
            return 0.0
        return max(0.0, 1.0 - rollout.num_tokens / self.limit_tokens)
