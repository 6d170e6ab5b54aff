"""Cosine: accuracy whose value depends on length, to steer thoughts neither to nothing nor to the limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.parsing import is_correct


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """The cosine length-scaled reward, rescaled from the range of its five values to [0, 1].

    With t = num_tokens and T = limit_tokens, a rollout that reached the limit has the value ``exceeded``; any other one
    moves along half a cosine from its value at length 0 to its value at the limit::

        value = at_limit + (at_zero - at_limit) * (1 + cos(pi * t / T)) / 2
        score = (value - lowest) / (highest - lowest)

    with lowest and highest over the five arguments. An affine map changes no group-normalised advantage; a weight of
    ``highest - lowest`` gives the published scale back. The published values make a right answer worth more when short,
    and a wrong one cost less when long, so a policy that is often wrong thinks longer.

    Reference: Demystifying Long Chain-of-Thought Reasoning, section 4.2 (arXiv 2502.03373). Its code also counts a
    completion within 16 tokens of the limit as exceeding it; that margin is left out.

    Raises:
        ValueError: ``limit_tokens`` is not positive, a value is not finite, or the values do not put a right answer
            above a wrong one of the same length.
    """

    limit_tokens: int
    correct_at_zero: float
    correct_at_limit: float
    wrong_at_zero: float
    wrong_at_limit: float
    exceeded: float

    def __post_init__(self) -> None:
        if self.limit_tokens <= 0:
            raise ValueError(f"limit_tokens is {self.limit_tokens}, expected a positive number of tokens")
        if not all(map(math.isfinite, self._values)):
            raise ValueError(f"the values of a cosine reward must be finite, got {list(self._values)}")
        if self.correct_at_zero <= self.wrong_at_zero or self.correct_at_limit <= self.wrong_at_limit:
            raise ValueError(
                f"a right answer must be worth more than a wrong one of its length, got {self.correct_at_zero} and "
                f"{self.wrong_at_zero} at length 0, {self.correct_at_limit} and {self.wrong_at_limit} at the limit"
            )

    def __call__(self, rollout: Rollout) -> float:
        lowest, highest = min(self._values), max(self._values)
        # Rounding may leave the range by one unit in the last place.
        return min(1.0, max(0.0, (self._value(rollout) - lowest) / (highest - lowest)))

    @property
    def _values(self) -> tuple[float, ...]:
        return (
            self.correct_at_zero,
            self.correct_at_limit,
            self.wrong_at_zero,
            self.wrong_at_limit,
            self.exceeded,
        )

    def _value(self, rollout: Rollout) -> float:
        if rollout.is_truncated or rollout.num_tokens >= self.limit_tokens:
            return self.exceeded
        if is_correct(rollout):
            at_zero, at_limit = self.correct_at_zero, self.correct_at_limit
        else:
            at_zero, at_limit = self.wrong_at_zero, self.wrong_at_limit
        return at_limit + (at_zero - at_limit) * (1 + math.cos(math.pi * rollout.num_tokens / self.limit_tokens)) / 2
