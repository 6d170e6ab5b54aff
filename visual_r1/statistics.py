"""Intervals and pass@k: what stands beside an estimate. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isclose, sqrt

from scipy.special import ndtri


@dataclass(frozen=True)
class Interval:
    """An estimate between the ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        """As percentages, for shares: ``57.0 % [52.1, 61.8]``."""
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """The Wilson score interval of a share; the estimate is ``successes / n``.

    It stays in [0, 1] and has a width at 0 and n successes too. Reference: Newcombe, Statistics in Medicine 17 (1998),
    method 3.

    Raises:
        ValueError: there is no item, or ``successes`` is not in [0, n], or ``level`` not in (0, 1).
    """
    if n <= 0:
        raise ValueError(f"a share of {n} items has no interval")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} items")
    z = ndtri((1 + _checked(level)) / 2)
    share = successes / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and n successes one end is the share itself, which rounding may miss.
    return Interval(share, float(min(share, max(0.0, center - half))), float(max(share, min(1.0, center + half))))


@dataclass(frozen=True)
class Stratum:
    """A part of the items, and how much its share of successes counts in a weighted mean."""

    weight: float
    """In (0, 1]; the weights of all strata add up to 1."""
    successes: int
    n: int


def weighted_wilson(strata: Sequence[Stratum], level: float = 0.95) -> Interval:
    """The interval of a weighted mean of independent shares, by squaring and adding their Wilson intervals.

    Each end is as far from the estimate as the ends of the shares' own intervals are from theirs, weighted, squared,
    added and rooted. One stratum gives `wilson`. Reference: Zou and Donner, Statistics in Medicine 27 (2008), equations
    3 and 4 (MOVER); for a difference of two shares it is method 10 of Newcombe, Statistics in Medicine 17 (1998).

    Raises:
        ValueError: no stratum, weights that are not positive or do not add up to 1, or as `wilson`.
    """
    if not strata or any(one.weight <= 0 for one in strata) or not isclose(sum(one.weight for one in strata), 1):
        raise ValueError(f"the weights {[one.weight for one in strata]} are not positive numbers that add up to 1")
    shares = [(one.weight, wilson(one.successes, one.n, level)) for one in strata]
    if len(shares) == 1:
        return shares[0][1]
    estimate = sum(weight * share.estimate for weight, share in shares)
    below = sqrt(sum((weight * (share.estimate - share.low)) ** 2 for weight, share in shares))
    above = sqrt(sum((weight * (share.high - share.estimate)) ** 2 for weight, share in shares))
    return Interval(estimate, max(0.0, estimate - below), min(1.0, estimate + above))


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of "at least one of k samples is right", from n samples of which c are.

    Reference: Chen et al., equation 1 (arXiv 2107.03374).

    Raises:
        ValueError: not ``0 <= c <= n`` and ``1 <= k <= n``.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right in {n} samples is not defined")
    return 1.0 - comb(n - c, k) / comb(n, k)


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}, expected a share between 0 and 1, such as 0.95")
    return level
