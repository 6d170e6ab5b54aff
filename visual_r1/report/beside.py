"""A run beside the published rows of its benchmark: like is compared with like, or the reason why not is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot
from typing import Any

from visual_r1.report.published import PublishedBenchmark, PublishedRow, published
from visual_r1.statistics import Interval

_HEADLINE = "strict"
_SCORER = "reference"
"""The only scorer of a run whose accuracy may be subtracted from a published one: all rows were scored by that rule."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A published row, and by how much the run is above it."""

    row: PublishedRow
    when: str
    """What of the run stands against it: ``after``, or ``before`` its training."""
    is_counterpart: bool
    """Whether that is this row's model and training."""
    difference: Interval | None = None
    """The run's accuracy minus the row's, as shares; None where they cannot be compared."""
    by_category: Mapping[str, Interval] = field(default_factory=dict)
    """The same by category, where the row has categories and the two can be compared."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a run measured next to what is published on its benchmark."""

    benchmark: PublishedBenchmark
    measured: Mapping[tuple[str, str], Interval]
    """The run's accuracy by scorer and by when, as far as it has them."""
    rows: tuple[Compared, ...]
    reason: str | None
    """Why there are no differences; None where there are."""


def beside(summary: Mapping[str, Any]) -> Beside | None:
    """Sets a run beside the published rows of its benchmark; None where nothing is published on it.

    A run is compared only by the accuracy that the paper's own rule gives it, and only on all items of the benchmark.
    Every row stands against the run's result; the row of its starting point also stands against what the run measured
    before training.

    Args:
        summary: The contents of ``summary.json``. ``model``, ``style``, ``method``, ``freeze`` and ``adapter`` say
            which rows are the run's counterparts; without them none is marked.
    """
    rows = published().on(str(summary.get("benchmark")))
    if not rows:
        return None
    benchmark = rows[0].benchmark
    reason = _reason(summary, benchmark)
    recipe = {key: str(summary.get(key)) for key in ("model", "style", "method", "freeze", "adapter")}
    end = published().counterparts(benchmark.name, **recipe)
    start = published().counterparts(benchmark.name, model=recipe["model"], style=recipe["style"], method="eval")
    has_start = not reason and _scored(summary, _SCORER, "before")
    pairs = [*((row, "before") for row in start if has_start), *((row, "after") for row in rows)]
    return Beside(
        benchmark=benchmark,
        measured={
            (scorer, when): _interval(values)
            for when in ("before", "after")
            for scorer in (_HEADLINE, _SCORER)
            if (values := _scored(summary, scorer, when))
        },
        rows=tuple(
            _compared(
                row,
                when=when,
                is_counterpart=when == "before" or row in end,
                values=None if reason else _scored(summary, _SCORER, when),
            )
            for row, when in pairs
        ),
        reason=reason,
    )


def _reason(summary: Mapping[str, Any], benchmark: PublishedBenchmark) -> str | None:
    if (num_items := summary.get("num_items", 0)) != benchmark.num_items:
        return f"the run was asked {num_items:,} items, the published models {benchmark.num_items:,}"
    if missing := summary.get("num_missing"):
        return f"the run has no response to {missing:,} of the items"
    for name, expected in benchmark.categories.items():
        measured = summary.get("by_category", {}).get(name, {}).get("after", {}).get("num_items", 0)
        if measured != expected:
            return f"the run was asked {measured:,} items of category {name}, the published models {expected:,}"
    if not _scored(summary, _SCORER, "after"):
        return f"the run was not scored by the paper's rule, `{_SCORER}` in benchmark.scorers"
    return None


def _compared(row: PublishedRow, *, when: str, is_counterpart: bool, values: Mapping[str, Any] | None) -> Compared:
    if values is None:
        return Compared(row=row, when=when, is_counterpart=is_counterpart)
    return Compared(
        row=row,
        when=when,
        is_counterpart=is_counterpart,
        difference=unpaired_difference(_interval(values), row.interval()),
        by_category={
            name: unpaired_difference(_interval(values["by_category"][name]), row.interval(name))
            for name in row.categories
        },
    )


def _scored(summary: Mapping[str, Any], scorer: str, when: str) -> Mapping[str, Any] | None:
    """What a scorer measured; None where it did not, or could not average these items."""
    values = summary.get("scorers", {}).get(scorer, {}).get(when, {})
    return None if values.get("accuracy") is None else values


def _interval(values: Mapping[str, Any]) -> Interval:
    return Interval(values["accuracy"], *values["accuracy_interval"])


def unpaired_difference(run: Interval, row: Interval) -> Interval:
    """Run minus row, by squaring and adding the distances to the ends of their intervals.

    As if the two were independent: a published row has no answers by item to pair the run's with. Reference: Newcombe,
    Statistics in Medicine 17 (1998) 873, method 10.
    """
    estimate = run.estimate - row.estimate
    below = hypot(run.estimate - run.low, row.high - row.estimate)
    above = hypot(run.high - run.estimate, row.estimate - row.low)
    return Interval(estimate, estimate - below, estimate + above)
