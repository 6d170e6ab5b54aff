"""What runs say about a claim: an estimate, its interval, and the verdict that the interval gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import pyarrow.parquet

from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder
from visual_r1.statistics import Interval, curve_band, difference_over_seeds, mean_over_seeds
from visual_r1.studies.study import LENGTH, SHARES, Condition, Side, Study, StudyError

Verdict = Literal["holds", "does not hold", "not resolved"]

Runs = Mapping[tuple[str, int], RunFolder]
"""The finished runs of a study, by cell and seed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the runs say of one condition."""

    condition: Condition
    interval: Interval
    """For other seeds; of shares, for other items too."""
    by_seed: tuple[float, ...]
    """The same number of each seed alone."""
    num_items: int | None
    """Of the benchmark; None for a curve."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the runs say of a claim."""

    study: Study
    findings: tuple[Finding, ...]
    commits: Mapping[str, tuple[str, ...]]
    """The code versions, with the runs that each has made, as ``cell/seed``."""
    minutes: float
    """All its runs took, one after another."""

    @property
    def verdict(self) -> Verdict:
        """Of the whole claim: it holds if every condition does, and does not if one does not."""
        verdicts = {finding.verdict for finding in self.findings}
        return next(one for one in ("does not hold", "not resolved", "holds") if one in verdicts)


def judge(study: Study, runs: Runs) -> Judgement:
    """Judges a claim by its finished runs.

    Raises:
        StudyError: a run is missing or not finished, lacks a measure, or runs that are to be compared were asked other
            items.
    """
    for cell in study.cells:
        for seed in study.seeds:
            if (cell, seed) not in runs or not runs[cell, seed].is_finished:
                raise StudyError(f"{study.name}: {cell} seed {seed} is not finished: `make study NAME={study.name}`")
    summaries = {f"{cell}/{seed}": read_json(run.summary) for (cell, seed), run in runs.items()}
    commits: dict[str, list[str]] = {}
    for name, summary in summaries.items():
        version = f"{summary.get('commit') or 'unknown'}{' with changes' if summary.get('is_dirty') else ''}"
        commits.setdefault(version, []).append(name)
    return Judgement(
        study=study,
        findings=tuple(_finding(study, condition, runs) for condition in study.conditions),
        commits={version: tuple(names) for version, names in commits.items()},
        minutes=sum(summary.get("wall_seconds", 0.0) for summary in summaries.values()) / 60,
    )


def verdict_of(interval: Interval, *, above: float, below: float) -> Verdict:
    """Whether a number lies between two bounds, as far as its interval can tell.

    It does if the whole interval lies between them, and does not if none of it does.
    """
    if above < interval.low and interval.high < below:
        return "holds"
    if interval.high <= above or interval.low >= below:
        return "does not hold"
    return "not resolved"


def _finding(study: Study, condition: Condition, runs: Runs) -> Finding:
    of, minus = condition.of, condition.minus
    is_share = condition.measure in SHARES
    read = _shares if is_share else _numbers
    ones = read(condition.measure, of, study.seeds, runs)
    others = None if minus is None else read(condition.measure, minus, study.seeds, runs)
    means = [fmean(row) for row in ones]
    if others is not None:
        means = [mine - fmean(theirs) for mine, theirs in zip(means, others, strict=True)]
    if not is_share:
        interval = _over_seeds(means)
    elif minus is None or others is None:
        interval = mean_over_seeds(ones)
    else:
        # A run and where it started from belong together; two methods meet in their seeds by chance alone.
        interval = difference_over_seeds(ones, others, paired=minus.cell == of.cell)
    return Finding(
        condition=condition,
        interval=interval,
        by_seed=tuple(means),
        num_items=len(ones[0]) if is_share else None,
        verdict=verdict_of(interval, above=condition.above, below=condition.below),
    )


def _over_seeds(means: Sequence[float]) -> Interval:
    """One number a seed; a single one has no interval, and so decides nothing."""
    if len(means) < 2:
        return Interval(means[0], -math.inf, math.inf)
    return curve_band([[mean] for mean in means])[0]


def _shares(measure: str, side: Side, seeds: Sequence[int], runs: Runs) -> list[list[float]]:
    """Which items have the property, [seeds, items], in one order for all."""
    tables = [_items(runs[side.cell, seed], side) for seed in seeds]
    ids = sorted(tables[0])
    for seed, table in zip(seeds, tables, strict=True):
        if sorted(table) != ids:
            raise StudyError(
                f"{runs[side.cell, seed].path}: it was asked other items than {runs[side.cell, seeds[0]].path}"
            )
    return [[float(_has(measure, table[one])) for one in ids] for table in tables]


def _has(measure: str, item: Mapping[str, Any]) -> bool:
    if measure == "benchmark/reflection":
        return bool(item["reflection"])
    if measure == "benchmark/readable":
        return item["choice"] is not None
    column = {
        "benchmark/accuracy": "correct",
        "benchmark/blank_accuracy": "blank_correct",
        "benchmark/truncated": "is_truncated",
    }[measure]
    return bool(item[column])


def _numbers(measure: str, side: Side, seeds: Sequence[int], runs: Runs) -> list[list[float]]:
    """One number a seed, [seeds, 1]."""
    return [[_number(measure, side, runs[side.cell, seed])] for seed in seeds]


def _number(measure: str, side: Side, run: RunFolder) -> float:
    if measure == LENGTH:
        return fmean(item["num_tokens"] for item in _items(run, side).values())
    values = [row[measure] for row in run.read_metrics() if row.get(measure) is not None]
    if not values:
        raise StudyError(f"{run.path}: it has no curve {measure}; see the names in {run.metrics.name}")
    return float(values[0] if side.when == "before" else values[-1])


def _items(run: RunFolder, side: Side) -> dict[str, dict[str, Any]]:
    """The benchmark's items by id."""
    rows = pyarrow.parquet.read_table(run.evaluation_items).to_pylist()
    found = {row["example_id"]: row for row in rows if row["when"] == side.when}
    if not found:
        raise StudyError(f"{run.path}: its benchmark was not measured {side.when} training")
    return found
