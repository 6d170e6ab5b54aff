"""Pairs of groups on the same items: by how much one is better, and whether that is resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import sqrt

import numpy as np

from visual_r1.report.groups import Group, difference
from visual_r1.report.runs import LeftOut, Run
from visual_r1.statistics import Interval, holm, mcnemar, minimum_difference

_LEVEL = 0.95
_MAX_GROUPS = 8
"""With more groups, each is compared with the first alone: all pairs of nine would be 36."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One group minus another in strict accuracy after training, on the same items."""

    benchmark: str
    one: str
    other: str
    difference: Interval
    """As shares, with a 95 % interval of its own."""
    num_comparisons: int
    """On the benchmark, this one included."""
    num_items: int
    num_seeds: tuple[int | None, int | None]
    """Of each side; None for a model that was not trained, of which there is one."""
    p: float | None
    """McNemar's exact test, two-sided; None where there are several seeds, which it cannot mix."""
    adjusted_p: float | None = None
    """The same after Holm's correction for all comparisons on the benchmark that have one."""
    is_resolved: bool = False
    """The interval excludes 0 at a level that holds for all comparisons of the benchmark together."""
    smallest: float
    """The smallest true difference that so many items and seeds would show in four of five experiments, if seeds and
    items vary as they did in this one."""
    takes_seeds_as_equal: bool = False
    """Whether `smallest` is of seeds that do not matter, since single seeds cannot say by how much they do."""

    @property
    def has_one_seed(self) -> bool:
        return 1 in self.num_seeds

    @property
    def verdict(self) -> str:
        """In words: what may be claimed."""
        if not self.is_resolved:
            return "not resolved"
        return f"{self.one if self.difference.estimate > 0 else self.other} is better"

    @property
    def remark(self) -> str:
        """What limits the verdict; empty if nothing does."""
        if self.is_resolved:
            return "of one seed" if self.has_one_seed else ""
        excludes_zero = self.difference.low > 0 or self.difference.high < 0
        return f"alone it would be; not among {self.num_comparisons}" if excludes_zero else ""


def compare(groups: Sequence[Group]) -> tuple[tuple[Comparison, ...], tuple[LeftOut, ...]]:
    """Compares the groups of each benchmark; pairs that were asked other items are left out."""
    found: list[Comparison] = []
    left_out: list[LeftOut] = []
    for benchmark in dict.fromkeys(group.benchmark for group in groups):
        here = [group for group in groups if group.benchmark == benchmark]
        pairs = list(combinations(here, 2)) if len(here) <= _MAX_GROUPS else [(here[0], other) for other in here[1:]]
        measured = []
        for other, one in pairs:  # later minus earlier: what is named first is the baseline
            if why := _cannot(one, other):
                what = f"the comparison with {other.label}"
                left_out.append(LeftOut(where=one.label, what=what, why=why))
            else:
                measured.append((one, other))
        if len(here) > _MAX_GROUPS:
            why = f"{len(here)} groups have {len(here) * (len(here) - 1) // 2} pairs: each is compared with the first"
            left_out.append(LeftOut(where=benchmark, what="comparisons among the others", why=why))
        found += _adjusted([_compared(one, other, num_comparisons=len(measured)) for one, other in measured])
    benchmarks = list(dict.fromkeys(group.benchmark for group in groups))
    if len(benchmarks) > 1:
        why = "they were asked other questions; within a benchmark they are"
        left_out.append(LeftOut(where=" and ".join(benchmarks), what="comparisons between these benchmarks", why=why))
    return tuple(found), tuple(left_out)


def _cannot(one: Group, other: Group) -> str | None:
    mine, theirs = one.answered("after"), other.answered("after")
    if not mine or not theirs:
        silent = one if not mine else other
        return f"{silent.label} has no items that all of its seeds were asked, so nothing can be paired"
    if sorted(mine[0].ids) != sorted(theirs[0].ids):
        common = len(set(mine[0].ids) & set(theirs[0].ids))
        return f"they were asked other items ({len(mine[0].ids)} and {len(theirs[0].ids)}, {common} of them the same)"
    if theirs[0].in_order_of(mine[0]) is None:
        changed = len(set(mine[0].asked) - set(theirs[0].asked))
        of = f"{changed} of {len(mine[0].ids)} items"
        return f"{of} have the same id and ask something else, or in another category: the data has changed"
    hashes = [{_fingerprint(run) for run in group.runs} for group in (one, other)]
    # Items in another order, or chosen otherwise, have another fingerprint and may be the same all the same.
    if mine[0].ids == theirs[0].ids and all(hashes) and None not in hashes[0] | hashes[1] and not hashes[0] & hashes[1]:
        return "the same questions in the same order, but their data's fingerprints differ: the images are others"
    if len(mine[0].ids) < 2:
        return "they were asked a single item, which has no spread"
    if "strict" not in mine[0].correct or "strict" not in theirs[0].correct:
        return "one of them was not scored by the strict rule"
    return None


def _fingerprint(run: Run) -> str | None:
    fingerprint = (run.provenance.get("data") or {}).get("benchmark")
    return fingerprint if isinstance(fingerprint, str) else None


def _compared(one: Group, other: Group, *, num_comparisons: int) -> Comparison:
    ours, theirs = one.verdicts("after"), other.verdicts("after", like=one.answered("after")[0])
    assert ours is not None and theirs is not None
    ours, theirs = _as_one(one, ours), _as_one(other, theirs)
    is_paired = one.is_paired_with(other) and len(ours) == len(theirs)
    together = difference(ours, theirs, is_paired=is_paired, level=1 - (1 - _LEVEL) / num_comparisons)
    num_items = ours.shape[1]
    is_fixed = [not group.is_trained and len(rows) == 1 for group, rows in ((one, ours), (other, theirs))]
    num_seeds = (None if is_fixed[0] else len(ours), None if is_fixed[1] else len(theirs))
    least = min((count for count in num_seeds if count is not None), default=1)
    return Comparison(
        benchmark=one.benchmark,
        one=one.label,
        other=other.label,
        difference=difference(ours, theirs, is_paired=is_paired, level=_LEVEL),
        num_comparisons=num_comparisons,
        num_items=num_items,
        num_seeds=num_seeds,
        p=mcnemar(ours[0], theirs[0]) if len(ours) == len(theirs) == 1 else None,
        is_resolved=together.low > 0 or together.high < 0,
        smallest=_resolvable(ours, theirs, num_seeds=least, is_other_fixed=None in num_seeds, is_paired=is_paired),
        takes_seeds_as_equal=len(ours) == len(theirs) == 1 and not all(is_fixed),
    )


def _as_one(group: Group, rows: np.ndarray) -> np.ndarray:
    """One row of a model that nobody trained and that answered the same every time."""
    return rows[:1] if not group.is_trained and bool((rows == rows[0]).all()) else rows


def _resolvable(
    ours: np.ndarray, theirs: np.ndarray, *, num_seeds: int, is_other_fixed: bool, is_paired: bool = False
) -> float:
    """What this design can find, if accuracy, correlation and spread between seeds are as they were here.

    Of unequal numbers of seeds the smaller one is taken for both sides: the answer is rather too large than too small.
    A model that was not trained is a single one, whatever the seed. Of paired seeds the spread is that of their
    differences, and the correlation that of each pair.
    """
    rows = np.vstack((ours, theirs))
    num_items = rows.shape[1]
    accuracy = float(np.clip((ours.mean() + theirs.mean()) / 2, 0.01, 0.99))
    variance = accuracy * (1 - accuracy)
    deviations = rows - rows.mean(axis=1, keepdims=True)
    covariances = deviations @ deviations.T / num_items
    shared = (covariances.diagonal(len(ours)) if is_paired else covariances[np.triu_indices(len(rows), k=1)]).mean()
    correlation = float(np.clip(shared / variance, 0.0, 0.99))
    if is_paired:
        between = (ours - theirs).mean(axis=1).var(ddof=1) / 2
    else:
        squares = sum(((side.mean(axis=1) - side.mean()) ** 2).sum() for side in (ours, theirs))
        between = squares / max(1, len(rows) - 2)  # of which the items' own noise is a part
    seed_sd = sqrt(max(0.0, between - (1 - correlation) * variance / num_items))
    return minimum_difference(
        num_items=num_items,
        num_seeds=num_seeds,
        accuracy=accuracy,
        seed_sd=seed_sd,
        correlation=correlation,
        is_other_fixed=is_other_fixed,
        are_seeds_paired=is_paired,
    )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's p-values, which then decide what is resolved.

    Comparisons that have none spend their part of the 5 % on their intervals, so the others have theirs to spend.
    """
    tested = [index for index, one in enumerate(comparisons) if one.p is not None]
    share = len(comparisons) / max(1, len(tested))
    p_values = (min(1.0, share * p) for p in holm(one.p for one in comparisons if one.p is not None))
    raised = dict(zip(tested, p_values, strict=True))
    return [
        replace(one, adjusted_p=raised[index], is_resolved=raised[index] < 1 - _LEVEL) if index in raised else one
        for index, one in enumerate(comparisons)
    ]
