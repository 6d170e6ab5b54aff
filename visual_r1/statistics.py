"""What stands beside an estimate: intervals, tests between models, pass@k and maj@k, what a design can resolve.

Letters: I items, S and T seeds (runs that differ in their seed alone). Items are taken as drawn one by one from all that
could be asked; where several questions share an image they are not, and every interval here is then too narrow. No torch
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, isclose, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, nctdtr, ndtri, stdtrit


@dataclass(frozen=True)
class Interval:
    """An estimate between the ends of its confidence interval."""

    estimate: float
    low: float
    high: float
    accounts_for_seeds: bool = False
    """Whether another seed was among what may come out otherwise. If not, the interval is about these very runs."""

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


def maj_at_k(answers: Sequence[Hashable | None], right: Hashable, k: int) -> float:
    """The unbiased estimate of "most of k samples give the right answer".

    It is the mean over all subsets of k of the n samples, drawn without replacement: 1 where the right answer has more
    votes than any other, 1/m where it shares the most votes with m - 1 others, else 0. A sample without a readable
    answer keeps its place among the k and votes for nothing; k of them are wrong. Exact, by counting the subsets.
    Reference for the estimator: Lewkowycz et al. (arXiv 2206.14858) name it; Hoeffding, Annals of Mathematical
    Statistics 19 (1948), for why the mean over subsets is unbiased.

    Args:
        answers: of the n samples; None where none can be read. Two votes are for one answer where they are equal.
        right: the right answer.
        k: how many samples vote, in [1, n].

    Raises:
        ValueError: ``k`` is not in [1, n], or ``right`` is None.
    """
    n = len(answers)
    if right is None:
        raise ValueError("the right answer is None, which is how a sample without an answer is written")
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} of {n} samples is not defined")
    votes = Counter(answers)
    num_unreadable, num_right = votes.pop(None, 0), votes.pop(right, 0)
    return _maj_at_k(num_right, tuple(sorted(votes.values())), num_unreadable, k)


@lru_cache(maxsize=4096)
def _maj_at_k(num_right: int, others: tuple[int, ...], num_unreadable: int, k: int) -> float:
    """As `maj_at_k`, from the number of votes for the right answer and for each of the others."""
    total = 0.0
    for top in range(1, min(num_right, k) + 1):
        # ways[tied][size]: how to take `size` of the other samples so that nobody has more than `top` votes and `tied`
        # of the wrong answers have as many.
        ways = {0: [comb(num_unreadable, size) for size in range(k - top + 1)]}
        for count in others:
            more: dict[int, list[int]] = {}
            for tied, sizes in ways.items():
                for taken in range(min(count, top, k - top) + 1):
                    row = more.setdefault(tied + (taken == top), [0] * (k - top + 1))
                    for size in range(k - top + 1 - taken):
                        row[size + taken] += comb(count, taken) * sizes[size]
            ways = more
        shares = sum(
            sizes[k - top] / (tied + 1) / comb(_size(num_right, others, num_unreadable), k)
            for tied, sizes in ways.items()
        )
        total += comb(num_right, top) * shares
    return total


def _size(num_right: int, others: tuple[int, ...], num_unreadable: int) -> int:
    return num_right + sum(others) + num_unreadable


def bootstrap_mean(values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of I values and the percentile interval of its bootstrap over items.

    Args:
        values: [I], an item each.
        level: of confidence, in (0, 1).
        resamples: how many means of I items, drawn with replacement, are taken.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: fewer than 2 items, a value that is not a finite number, or ``level`` not in (0, 1).
    """
    drawn = _resampled_means(_vector(values), resamples=resamples, seed=seed)
    low, high = np.quantile(drawn, [(1 - _checked(level)) / 2, (1 + level) / 2])
    return Interval(float(np.mean(np.asarray(values, dtype=float))), float(low), float(high))


def paired_difference(
    one: ArrayLike, other: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How far the mean of one model lies above another's on the same items, by a bootstrap of the pairs.

    Args:
        one: [I], an item each.
        other: [I], the same items in the same order.
        level: of confidence, in (0, 1).
        resamples: how many means of I pairs, drawn with replacement, are taken.
        seed: of the draws.

    Raises:
        ValueError: as `bootstrap_mean`, or the two have not the same number of items.
    """
    first, second = _vector(one), _vector(other)
    _check_pairs(first.size, second.size)
    return bootstrap_mean(first - second, level=level, resamples=resamples, seed=seed)


def mcnemar(one: ArrayLike, other: ArrayLike) -> float:
    """The exact two-sided p-value of "both models are right equally often" on the same items.

    Of the items where just one of them is right, either is it with probability 1/2. Reference: McNemar, Psychometrika
    12 (1947); the exact conditional test of Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13 (2013)
    91.

    Args:
        one: [I], whether the first model is right: 0 or 1.
        other: [I], the second, on the same items in the same order.

    Raises:
        ValueError: no item, values other than 0 and 1, or not the same number of items.
    """
    first, second = _verdicts(one), _verdicts(other)
    _check_pairs(first.size, second.size)
    wins, losses = int(np.sum(first > second)), int(np.sum(first < second))
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def holm(p_values: Iterable[float]) -> list[float]:
    """P-values of several comparisons, raised so that any of them under 0.05 is a false one in 5 % of reports at most.

    In the order given. Reference: Holm, Scandinavian Journal of Statistics 6 (1979).

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    p = np.asarray(list(p_values), dtype=float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values are in [0, 1], got {p.tolist()}")
    order = np.argsort(p)
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = raised
    return adjusted.tolist()


def mean_over_seeds(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean over S seeds and I items, and an interval for what other seeds and other items would give.

    With one seed the interval is over items only and says nothing about seeds: ``accounts_for_seeds`` is False.

    Args:
        values: [S, I], the same items in the same order for every seed. Values that all lie in [0, 1] are taken as
            shares, whose interval stays there.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: not a table of S >= 1 rows of I >= 2 finite numbers, or ``level`` not in (0, 1).
    """
    table = _table(values)
    half = _half_width(_spread(table), level)
    mean = float(table.mean())
    accounts = len(table) > 1
    if table.min() < 0 or table.max() > 1:
        return Interval(mean, mean - half, mean + half, accounts)
    low, high = _share_ends(mean, half, num_items=table.shape[1], level=level)
    return Interval(mean, low, high, accounts)


def difference_over_seeds(ones: ArrayLike, others: ArrayLike, *, paired: bool = False, level: float = 0.95) -> Interval:
    """How far one method's mean lies above another's on the same items, over S seeds of one and T of the other.

    Args:
        ones: [S, I].
        others: [T, I], the same items in the same order. T may be 1, as of an untrained starting point: then the
            interval takes that one for granted and accounts for the seeds of the other side only.
        paired: whether row s of both sides belongs together, as a run and what it started from; S is T then.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: as `mean_over_seeds`, or other items, or ``paired`` with S not T.
    """
    first, second = _table(ones), _table(others)
    _check_pairs(first.shape[1], second.shape[1])
    if paired and len(first) != len(second):
        raise ValueError(f"paired seeds, but {len(first)} on one side and {len(second)} on the other")
    if paired:
        spread = _spread(first - second)
    else:
        spread = _spread(first, second)
    mean = float(first.mean() - second.mean())
    half = _half_width(spread, level)
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half), max(len(first), len(second)) > 1)


def curve_band(values: ArrayLike, level: float = 0.95) -> list[Interval]:
    """The mean over seeds at each step of a curve, with the t-interval over seeds of that step alone.

    It says where the mean of many seeds would lie, and nothing about items: each seed's point counts as one number.

    Args:
        values: [S, steps].
        level: of confidence, in (0, 1), at one step, not for all steps together.

    Raises:
        ValueError: fewer than two seeds, not a table of finite numbers, or ``level`` not in (0, 1).
    """
    table = _table(values, least=1)
    num_seeds = len(table)
    if num_seeds < 2:
        raise ValueError("a band over seeds needs two seeds, got 1")
    halves = stdtrit(num_seeds - 1, (1 + _checked(level)) / 2) * table.std(axis=0, ddof=1) / sqrt(num_seeds)
    return [
        Interval(float(mean), float(mean - half), float(mean + half), True)
        for mean, half in zip(table.mean(axis=0), halves, strict=True)
    ]


def minimum_difference(
    *,
    num_items: int,
    num_seeds: int,
    accuracy: float = 0.5,
    seed_sd: float = 0.0,
    correlation: float = 0.0,
    is_paired: bool = True,
    power: float = 0.8,
    level: float = 0.95,
) -> float:
    """The smallest true difference of two accuracies that a design finds with the given power.

    Args:
        num_items: asked of every run.
        num_seeds: runs of each of the two methods.
        accuracy: about which the two lie.
        seed_sd: standard deviation of the accuracy between seeds on endlessly many items, as a share (0.01 is a point).
        correlation: of two runs' verdicts on the same item.
        is_paired: whether both methods are asked the same items.
        power: probability of finding it.
        level: of the interval that must not hold 0.

    Raises:
        ValueError: a number out of its range.
    """
    if num_items < 2 or num_seeds < 1:
        raise ValueError(f"{num_items} items and {num_seeds} seeds are no design")
    if not 0 < accuracy < 1 or seed_sd < 0 or not 0 <= correlation < 1 or not 0 < power < 1:
        raise ValueError("accuracy and power are in (0, 1), correlation in [0, 1), seed_sd is not negative")
    spread = accuracy * (1 - accuracy)
    seeds = 2 * (seed_sd**2 + (1 - correlation) * spread / num_items) / num_seeds
    items = 0.0 if is_paired else 2 * correlation * spread / num_items
    error = sqrt(seeds + items)
    if num_seeds == 1:
        return float(ndtri((1 + _checked(level)) / 2) + ndtri(power)) * error
    degrees = 2 * (num_seeds - 1) * (seeds + items) / seeds
    quantile = stdtrit(degrees, (1 + _checked(level)) / 2)
    return error * brentq(lambda ncp: 1 - nctdtr(degrees, ncp, quantile) - power, 0.0, quantile + 20.0)


@dataclass(frozen=True)
class _Spread:
    """The variance of a mean, in two parts."""

    seeds: float
    items: float
    degrees: float


def _spread(table: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> _Spread:
    seeds = residual = weight = 0.0
    mean = np.zeros(table.shape[1])
    for side, sign in ((table, 1), (other, -1)):
        if side is None:
            continue
        num_seeds, num_items = side.shape
        by_item = side.mean(axis=0)
        mean = mean + sign * by_item
        if num_seeds > 1:
            part = float(side.mean(axis=1).var(ddof=1)) / num_seeds
            seeds += part
            weight += part**2 / (num_seeds - 1)
            left = side - by_item - side.mean(axis=1, keepdims=True) + side.mean()
            residual += float((left**2).sum()) / ((num_seeds - 1) * (num_items - 1)) / (num_seeds * num_items)
    items = float(mean.var(ddof=1)) / mean.size
    return _Spread(seeds, max(items - residual, 0.0), seeds**2 / weight if weight else 1.0)


def _half_width(spread: _Spread, level: float) -> float:
    variance = spread.seeds + spread.items
    if variance == 0:
        return 0.0
    degrees = min(spread.degrees * variance / spread.seeds, 1e6) if spread.seeds else 1e6
    return float(stdtrit(degrees, (1 + _checked(level)) / 2)) * sqrt(variance)


def _share_ends(mean: float, half: float, *, num_items: int, level: float) -> tuple[float, float]:
    """Wilson's ends for as many items as would give this half width."""
    spread = mean * (1 - mean)
    # z^2 over the number of items that would do.
    ratio = half**2 / spread if half and spread else float(ndtri((1 + _checked(level)) / 2)) ** 2 / num_items
    center = (mean + ratio / 2) / (1 + ratio)
    reach = sqrt(ratio * spread + ratio**2 / 4) / (1 + ratio)
    return min(mean, max(0.0, center - reach)), max(mean, min(1.0, center + reach))


def _resampled_means(values: NDArray[np.float64], *, resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples]: means of as many values, drawn with replacement."""
    kinds, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, 10_000_000 // kinds.size)
    parts = [
        rng.multinomial(values.size, counts / values.size, size=min(step, resamples - start)) @ kinds
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts) / values.size


def _table(values: ArrayLike, *, least: int = 2) -> NDArray[np.float64]:
    try:
        table = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("the seeds have not the same number of items, or hold something that is no number") from None
    if table.ndim != 2 or not len(table) or table.shape[1] < least:
        raise ValueError(f"expected a table of seeds by items (at least {least} items), got the shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of {table.size} values are not finite numbers")
    return table


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    try:
        vector = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("the items hold something that is no number") from None
    if vector.ndim != 1:
        raise ValueError(f"expected a value an item, got the shape {vector.shape}")
    return _table(vector[None])[0]


def _verdicts(values: ArrayLike) -> NDArray[np.float64]:
    verdicts = np.asarray(values, dtype=float)
    if verdicts.ndim != 1 or not verdicts.size or not np.isin(verdicts, (0, 1)).all():
        raise ValueError("expected 0 or 1 an item, and one item at least")
    return verdicts


def _check_pairs(one: int, other: int) -> None:
    if one != other:
        raise ValueError(f"{one} items on one side and {other} on the other: pairs are of the same items")


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}, expected a share between 0 and 1, such as 0.95")
    return level
