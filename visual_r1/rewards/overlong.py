"""Overlong: how far a completion went into the last stretch before the limit."""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.examples import Rollout


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """0.0 up to the soft limit, 1.0 from the hard limit on, and a straight line between; the weight is negative.

    DAPO's soft overlong punishment is minus this score: L_max is the hard limit, and L_max - L_cache the soft one.

    Reference: DAPO, equation 13 (arXiv 2503.14476).

    Raises:
        ValueError: the limits are not ``0 <= soft < hard``.
    """

    soft_limit_tokens: int | None
    """None is 4/5 of the hard limit, the ratio of DAPO (16,384 of 20,480), whatever the scale of the run."""
    hard_limit_tokens: int

    def __post_init__(self) -> None:
        if self.hard_limit_tokens <= 0:
            raise ValueError(f"hard_limit_tokens is {self.hard_limit_tokens}, expected a positive number of tokens")
        if self.soft_limit_tokens is not None and not 0 <= self.soft_limit_tokens < self.hard_limit_tokens:
            raise ValueError(
                f"soft_limit_tokens is {self.soft_limit_tokens}, expected at least 0 and less than hard_limit_tokens, "
                f"which is {self.hard_limit_tokens}"
            )

    def __call__(self, rollout: Rollout) -> float:
        soft = 0.8 * self.hard_limit_tokens if self.soft_limit_tokens is None else self.soft_limit_tokens
        return min(1.0, max(0.0, (rollout.num_tokens - soft) / (self.hard_limit_tokens - soft)))
