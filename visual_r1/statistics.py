"""What stands beside an estimate: intervals, tests between models, pass@k and maj@k, what a design can resolve.

Letters: I items, S and T seeds (runs that differ in their seed alone). Items are taken as drawn one by one from all
that could be asked; where several questions share an image they are not, and every interval here is too narrow. How
often the intervals hold the truth is measured by ``benchmarks/coverage.py``; the table stands in docs/statistics.md.
No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb, inf, isclose, sqrt
from typing import Any

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
    z = _z(level)
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


@dataclass(frozen=True)
class ItemStratum:
    """A part of the items of a table, and how much its mean counts in the whole."""

    weight: float
    """In (0, 1]; the weights of all strata add up to 1."""
    items: Sequence[int] | NDArray[np.intp]
    """Their columns; two of them or more."""


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
    Reference: Wang et al. (arXiv 2203.11171) for the vote; a mean over all subsets is unbiased: Hoeffding, Annals of
    Mathematical Statistics 19 (1948) 293.

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
    subsets = comb(num_right + sum(others) + num_unreadable, k)
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
        shares = sum(sizes[k - top] / (tied + 1) / subsets for tied, sizes in ways.items())
        total += comb(num_right, top) * shares
    return total


def bootstrap_mean(values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of I values and the percentile interval of its bootstrap over items.

    Values that are all 0 or 1 get two ones and two zeros more before they are resampled, so that the interval has a
    width where all items are right or wrong (Agresti and Coull, American Statistician 52 (1998) 119); `wilson` is
    closer and needs no draws. Values with a long tail want more items: of a log-normal with as much spread as mean, 60
    items are too few. Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Args:
        values: [I], an item each.
        level: of confidence, in (0, 1).
        resamples: how many means of I items, drawn with replacement, are taken.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: fewer than 2 items, a value that is not a finite number, no resample, or ``level`` not in (0, 1).
    """
    items = _vector(values)
    kinds, counts = np.unique(items, return_counts=True)
    if np.isin(kinds, (0, 1)).all():
        kinds, counts = np.array([0.0, 1.0]), np.array([np.sum(items == 0), np.sum(items == 1)]) + 2
    return _percentiles(float(items.mean()), kinds, counts, level=level, resamples=resamples, seed=seed)


def paired_difference(
    one: ArrayLike, other: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How far the mean of one model lies above another's on the same items, by a bootstrap of the pairs.

    It is about these two models, not about the methods that made them: another seed would make others. Where all
    values are 0 or 1, half a pair of each of the four kinds is added before the pairs are resampled, so that the
    interval has a width where no pair differs (Agresti and Min, Statistics in Medicine 24 (2005) 729).

    Args:
        one: [I], an item each.
        other: [I], the same items in the same order.
        level: of confidence, in (0, 1).
        resamples: how many means of I pairs, drawn with replacement, are taken.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: as `bootstrap_mean`, or the two have not the same number of items.
    """
    first, second = _vector(one), _vector(other)
    _check_pairs(first.size, second.size)
    differences = first - second
    kinds, counts = np.unique(differences, return_counts=True)
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        kinds = np.array([-1.0, 0.0, 1.0])
        counts = np.array([np.sum(differences == kind) for kind in kinds]) + (0.5, 1.0, 0.5)
    return _percentiles(float(differences.mean()), kinds, counts, level=level, resamples=resamples, seed=seed)


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


def mean_over_seeds(values: ArrayLike, *, strata: Sequence[ItemStratum] = (), level: float = 0.95) -> Interval:
    """The mean over S seeds and I items, and an interval for what other seeds and other items would give.

    A hierarchical bootstrap over seeds and items, with endless resamples: of a mean, its variance is a formula, and
    nothing is drawn. Taken as it is, that bootstrap is wrong for few seeds. Of a seed's, an item's and their
    remainder's deviations (a, b, e) it adds up sum a^2 / S^2 + sum b^2 / I^2 + sum e^2 / (S I)^2 (Owen, Annals of
    Applied Statistics 1 (2007) 386); the first is too small by (S - 1) / S, the remainder is in it three times, and the
    quantiles of three resampled seeds are far too near. Here each sum is divided by its degrees of freedom, the
    remainder is counted once, and t's quantile stands for the percentiles. Its degrees are those of the seeds, S - 1,
    divided by their share in the variance: S - 1 where all uncertainty is of the seeds, endless where none is.
    Satterthwaite's, which divide by the squared share, cover less with 3 seeds: both were measured.

    Values that all lie in [0, 1] are shares: Wilson's interval of as many items as would be that uncertain, which stays
    in [0, 1] and has a width at both ends (Dean and Pagano, Journal of Survey Statistics and Methodology 3 (2015) 484).
    Where all are 0 or all are 1 the items count once, however many seeds have answered them.

    With one seed the interval is over items only and says nothing about seeds: ``accounts_for_seeds`` is False. With
    two seeds nobody can say 95 %: measured, 90 to 98 %.

    Args:
        values: [S, I], the same items in the same order for every seed.
        strata: of a weighted mean, how much each part of the items counts; empty where every item counts the same.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: not a table of S >= 1 rows of I >= 2 finite numbers, strata of fewer than 2 items or whose weights
            are not positive numbers that add up to 1, or ``level`` not in (0, 1).
    """
    table = _table(values)
    num_seeds, num_items = table.shape
    parts = _checked_strata(strata, num_items)
    mean, half = float(_weighted_mean(table, parts).mean()), _half_width(_variance(table, strata=parts), level)
    if table.min() < 0 or table.max() > 1:
        return Interval(mean, mean - half, mean + half, num_seeds > 1)
    spread = mean * (1 - mean) * num_items / (num_items - 1)
    # z^2 / n of Wilson's formula, where n items would be as uncertain.
    ratio = half**2 / spread if half and spread else _z(level) ** 2 * sum(o.weight**2 / len(o.items) for o in parts)
    center = (mean + ratio / 2) / (1 + ratio)
    reach = sqrt(ratio * mean * (1 - mean) + ratio**2 / 4) / (1 + ratio)
    return Interval(mean, min(mean, max(0.0, center - reach)), max(mean, min(1.0, center + reach)), num_seeds > 1)


def difference_over_seeds(
    ones: ArrayLike,
    others: ArrayLike,
    *,
    paired: bool = False,
    strata: Sequence[ItemStratum] = (),
    level: float = 0.95,
) -> Interval:
    """How far one method's mean lies above another's on the same items, over S seeds of one and T of the other.

    As `mean_over_seeds`, with the seeds' variances of both sides added and their degrees of freedom taken together by
    Welch's formula (Biometrika 34 (1947) 28). Items that are hard for both sides cancel. Where all values are 0 or 1,
    half a pair of each kind, of one seed, is added to the items' variance, as in `paired_difference`.

    Args:
        ones: [S, I].
        others: [T, I], the same items in the same order. T may be 1, as of an untrained starting point: the interval
            takes that one for granted and accounts for the seeds of the other side only.
        paired: whether row s of both sides belongs together, as a run and the one that it started from; S is T then.
        strata: as in `mean_over_seeds`.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: as `mean_over_seeds`, or other items, or ``paired`` and S is not T.
    """
    first, second = _table(ones), _table(others)
    _check_pairs(first.shape[1], second.shape[1])
    if paired and len(first) != len(second):
        raise ValueError(f"paired seeds, but {len(first)} on one side and {len(second)} on the other")
    parts = _checked_strata(strata, first.shape[1])
    variance = _variance(first - second, strata=parts) if paired else _variance(first, second, strata=parts)
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        added = sum((one.weight / (len(one.items) + 2)) ** 2 for one in parts) / max(len(first), len(second))
        variance = replace(variance, items=variance.items + added)
    estimate = float(_weighted_mean(first, parts).mean() - _weighted_mean(second, parts).mean())
    half = _half_width(variance, level)
    return Interval(estimate, estimate - half, estimate + half, max(len(first), len(second)) > 1)


def curve_band(values: ArrayLike, level: float = 0.95) -> list[Interval]:
    """The mean over seeds at each step of a curve, with the t-interval over seeds of that step alone.

    It holds the mean of endlessly many seeds on these very items, at one step with probability ``level``, not at all
    steps together.

    Args:
        values: [S, steps].
        level: of confidence, in (0, 1).

    Raises:
        ValueError: fewer than two seeds, not a table of finite numbers, or ``level`` not in (0, 1).
    """
    table = _table(values, least=1)
    num_seeds = len(table)
    if num_seeds < 2:
        raise ValueError("one seed has no band: a band over seeds needs two of them or more")
    halves = stdtrit(num_seeds - 1, (1 + _checked(level)) / 2) * table.std(axis=0, ddof=1) / sqrt(num_seeds)
    return [
        Interval(float(mean), float(mean - half), float(mean + half), True)
        for mean, half in zip(table.mean(axis=0), halves, strict=True)
    ]


def minimum_difference(
    *,
    num_items: int,
    num_seeds: int,
    accuracy: float,
    seed_sd: float = 0.0,
    correlation: float = 0.0,
    is_paired: bool = True,
    is_other_fixed: bool = False,
    are_seeds_paired: bool = False,
    power: float = 0.8,
    level: float = 0.95,
) -> float:
    """The smallest true difference of two methods' accuracies that a design finds with the given power, as a share.

    ``num_seeds`` runs of each method answer ``num_items`` items. The difference of the two means has the variance
    2 (seed_sd^2 + (1 - r) v / I) / S, and 2 r v / I more where the items are not the same, with v = accuracy
    (1 - accuracy) and r the correlation. It is found where `difference_over_seeds` does not hold 0: the noncentrality
    at which t's tail is the power, with the degrees of freedom that Welch's formula finds there, which are S / (S + 1)
    of the 2 (S - 1) that two equal spreads have (the mean of its denominator over S seeds). One seed of each cannot
    know how much seeds differ; for it, ``seed_sd`` is taken as known, and with ``seed_sd=0`` the answer is about the
    two models and not about the methods.

    Where the other side is one fixed model, as the untrained starting point is, its spread between seeds is not in the
    variance, which is (seed_sd^2 + (1 - r) v / I) / S and (1 - r) v / I more, and the seeds have S - 1 degrees. Where
    the methods are compared seed by seed, there are S differences and S - 1 degrees, too.

    Reference: Miller (arXiv 2411.00640) for items; Colas et al. (arXiv 1806.08295) for seeds and t; for the noncentral
    t, Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2.

    Args:
        num_items: I, asked of every run.
        num_seeds: S, runs of each of the two methods.
        accuracy: about which the two lie, in (0, 1).
        seed_sd: standard deviation of a method's accuracy between seeds, on endlessly many items, as a share. 0 is the
            best case: seeds that do not matter.
        correlation: of two runs' verdicts on the same item, in [0, 1), of one method or of both. 0 is the worst case
            where the items are paired.
        is_paired: whether both methods are asked the same items, and compared item by item. A published accuracy has
            no items to compare by.
        is_other_fixed: whether the other side is one model whatever the seed, and not a method with S runs.
        are_seeds_paired: whether run s of both methods belongs together, since both began from the model of seed s.
            ``seed_sd`` is then of what they do not have in common: that of their difference, over the root of 2.
        power: probability of finding a difference of that size, in (0, 1).
        level: of the interval that must not hold 0, in (0, 1).

    Raises:
        ValueError: a number out of its range.
    """
    if num_items < 2 or num_seeds < 1:
        raise ValueError(f"{num_items} items and {num_seeds} seeds: at least 2 items and 1 seed can be compared")
    ranges = {"accuracy": 0 < accuracy < 1, "correlation": 0 <= correlation < 1, "seed_sd": 0 <= seed_sd < 1}
    if wrong := [name for name, holds in (ranges | {"power": _checked(level) / 2 < power < 1}).items() if not holds]:
        wanted = "accuracy in (0, 1), correlation and seed_sd in [0, 1), power under 1 and over half the level"
        raise ValueError(f"{' and '.join(wrong)} out of range: {wanted}")
    v = accuracy * (1 - accuracy)
    remainder = (1 - correlation) * v / num_items
    sides = 1 if is_other_fixed else 2
    seeds = sides * (seed_sd**2 + remainder) / num_seeds
    items = (0.0 if is_paired else 2 * correlation * v / num_items) + (remainder if is_other_fixed else 0.0)
    error = sqrt(seeds + items)
    if num_seeds == 1:
        return (_z(level) + float(ndtri(power))) * error
    of_seeds = (
        num_seeds - 1 if is_other_fixed or are_seeds_paired else 2 * (num_seeds - 1) * num_seeds / (num_seeds + 1)
    )
    degrees = of_seeds * (seeds + items) / seeds
    edge = float(stdtrit(degrees, (1 + level) / 2))
    return error * float(brentq(lambda shift: 1 - nctdtr(degrees, shift, edge) - power, 0.0, 10 * edge))


def _checked_strata(strata: Sequence[ItemStratum], num_items: int) -> Sequence[ItemStratum]:
    """The strata with their items as an array; all items in one where there are none."""
    if not strata:
        return (ItemStratum(1.0, np.arange(num_items)),)
    if any(one.weight <= 0 or len(one.items) < 2 for one in strata) or not isclose(sum(o.weight for o in strata), 1):
        shown = [(one.weight, len(one.items)) for one in strata]
        raise ValueError(f"strata (weight, items) {shown}: 2 items each, positive weights that add up to 1")
    return [ItemStratum(one.weight, np.asarray(one.items)) for one in strata]


def _weighted_mean(table: NDArray[np.float64], strata: Sequence[ItemStratum]) -> NDArray[np.float64]:
    """[S], of each row."""
    return sum((one.weight * table[:, one.items].mean(axis=1) for one in strata), start=np.zeros(len(table)))


@dataclass(frozen=True)
class _Variance:
    """Of a mean over seeds and items: what comes of seeds, with the remainder, and what of items alone."""

    seeds: float
    degrees: float
    """Of freedom, of the seeds' part."""
    items: float


def _variance(
    one: NDArray[np.float64], other: NDArray[np.float64] | None = None, *, strata: Sequence[ItemStratum]
) -> _Variance:
    """Of the mean of one table, or of the difference of two with the same items."""
    tables = [one] if other is None else [one, other]
    by_item = one.mean(axis=0) if other is None else one.mean(axis=0) - other.mean(axis=0)
    items = sum(part.weight**2 * by_item[part.items].var(ddof=1) / len(part.items) for part in strata)
    seeds = squares = 0.0
    for whole in tables:
        num_seeds = len(whole)
        if num_seeds == 1:
            continue
        part = _weighted_mean(whole, strata).var(ddof=1) / num_seeds
        for stratum in strata:
            table = whole[:, stratum.items]
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            # The remainder of seed and item is in the seeds' part, too, where it belongs to fewer degrees of freedom.
            spread = (rest**2).sum() / ((num_seeds - 1) * (table.shape[1] - 1))
            items -= stratum.weight**2 * spread / table.size
        seeds += part
        squares += part**2 / (num_seeds - 1)
    return _Variance(float(seeds), float(seeds**2 / squares) if squares else inf, max(0.0, float(items)))


def _half_width(variance: _Variance, level: float) -> float:
    total = variance.seeds + variance.items
    if not variance.seeds:
        return _z(level) * sqrt(total)
    return float(stdtrit(variance.degrees * total / variance.seeds, (1 + _checked(level)) / 2)) * sqrt(total)


def _percentiles(
    estimate: float,
    kinds: NDArray[np.float64],
    counts: NDArray[Any],
    *,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """The ends between which the means of samples lie, drawn with replacement from so many values of each kind."""
    ends = [(1 - _checked(level)) / 2, (1 + level) / 2]
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: at least one is needed")
    generator = np.random.default_rng(seed)
    size = counts.sum()
    # In parts, for the memory: many kinds are as many columns.
    part = max(1, 4_000_000 // kinds.size)
    means = [
        generator.multinomial(round(size), counts / size, size=min(part, resamples - start)) @ kinds / round(size)
        for start in range(0, resamples, part)
    ]
    low, high = np.quantile(np.concatenate(means), ends)
    return Interval(estimate, min(estimate, float(low)), max(estimate, float(high)))


def _z(level: float) -> float:
    return float(ndtri((1 + _checked(level)) / 2))


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("rows of different lengths, or something that is not a number, among the values") from None
    if bad := int((~np.isfinite(numbers)).sum()):
        raise ValueError(f"{bad} of {numbers.size} values are not finite numbers")
    return numbers


def _table(values: ArrayLike, *, least: int = 2) -> NDArray[np.float64]:
    table = _numbers(values)
    if table.ndim != 2 or not len(table) or table.shape[1] < least:
        raise ValueError(f"expected [seeds, items] with 1 seed and {least} items or more, got the shape {table.shape}")
    return table


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    vector = _numbers(values)
    if vector.ndim != 1 or vector.size < 2:
        raise ValueError(f"expected [items] with 2 items or more, got the shape {vector.shape}")
    return vector


def _verdicts(values: ArrayLike) -> NDArray[np.float64]:
    verdicts = _numbers(values)
    if verdicts.ndim != 1 or not verdicts.size or not np.isin(verdicts, (0, 1)).all():
        raise ValueError("expected a verdict an item, 0 or 1, and one item at least")
    return verdicts


def _check_pairs(one: int, other: int) -> None:
    if one != other:
        raise ValueError(f"{one} items on one side and {other} on the other: pairs are of the same items")


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}, expected a share between 0 and 1, such as 0.95")
    return level
