"""What runs say about a claim: an estimate, its interval, and the verdict that the interval gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow.parquet

from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder
from visual_r1.statistics import Interval, curve_band, difference_over_seeds, mean_over_seeds, wilson
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import LENGTH, PROBED, SHARES, Condition, Side, Study, When, is_rate

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
    given: tuple[Finding, ...]
    """What must hold for the claim to be decided at all."""
    chosen: Mapping[str, str]
    """Which cell each name stands for that is the best of some."""
    commits: Mapping[str, tuple[str, ...]]
    """The code versions, with the runs that each has made, as ``cell/seed``, and the builds, as ``build:name/seed``."""
    minutes: float
    """All its runs and builds took, one after another."""

    @property
    def verdict(self) -> Verdict:
        """Of the whole claim: it holds if every condition does, and does not if one does not.

        It is not resolved where what is given does not hold, or is not known to.
        """
        if any(finding.verdict != "holds" for finding in self.given):
            return "not resolved"
        verdicts = {finding.verdict for finding in self.findings}
        return next(one for one in ("does not hold", "not resolved", "holds") if one in verdicts)


def judge(study: Study, runs: Runs, builds: Sequence[Path] = ()) -> Judgement:
    """Judges a claim by its finished runs.

    Args:
        study: the claim.
        runs: its runs, by cell and seed.
        builds: the records of what was built for them.

    Raises:
        StudyError: a run is missing, not finished or damaged, lacks a measure, or runs that are to be compared were
            asked other items.
    """
    for cell in study.cells:
        for seed in study.seeds:
            if (cell, seed) not in runs or not runs[cell, seed].is_finished:
                raise StudyError(f"{study.name}: {cell} seed {seed} is not finished: `make study NAME={study.name}`")
    commits: dict[str, list[str]] = {}
    minutes = 0.0
    for (cell, seed), run in runs.items():
        commits.setdefault(_version_of_run(run), []).append(f"{cell}/{seed}")
        minutes += _read(read_json, run.summary).get("wall_seconds", 0.0) / 60
    for path in builds:
        record = _read(read_json, path)
        name = f"build:{path.parent.parent.name}/{path.parent.name.removeprefix('seed')}"
        commits.setdefault(_version(record), []).append(name)
        minutes += record.get("wall_seconds", 0.0) / 60
    chosen = {
        name: max(choice.of, key=lambda cell, by=choice.by: _mean_after(by, cell, study.seeds, runs))
        for name, choice in study.chosen.items()
    }
    known = {**runs, **{(name, seed): runs[cell, seed] for name, cell in chosen.items() for seed in study.seeds}}
    return Judgement(
        study=study,
        findings=tuple(_finding(study, condition, known) for condition in study.conditions),
        given=tuple(_finding(study, condition, known) for condition in study.given),
        chosen=chosen,
        commits={version: tuple(names) for version, names in commits.items()},
        minutes=minutes,
    )


def _version_of_run(run: RunFolder) -> str:
    """The code of a run: that it began with, and any other that it was gone on with."""
    if not run.provenance.exists():
        return _version(_read(read_json, run.summary))
    first = _read(read_json, run.provenance)
    return ", then ".join(dict.fromkeys(_version(one["code"]) for one in (first, *first["resumes"])))


def _version(code: Mapping[str, Any]) -> str:
    """A commit, with a mark of what had been changed since where that is known: two changes of it are two versions."""
    commit = code.get("commit") or "unknown"
    if not code.get("is_dirty"):
        return commit
    return f"{commit} with changes" + (f" {code['diff_sha256'][:8]}" if code.get("diff_sha256") else "")


def _read(read: Callable[[Path], Any], path: Path) -> Any:
    """What a file of a run or build holds.

    Raises:
        StudyError: it is not there, or not whole.
    """
    try:
        return read(path)
    except (OSError, ValueError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"is damaged ({' '.join(str(error).split())})"
        raise StudyError(f"{path} {why}: move {path.parent} away, and type the study again") from error


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
    others = None
    if is_share:
        ones = _shares(condition.measure, of, study.seeds, runs)
        others = None if minus is None else _shares(condition.minus_measure, minus, study.seeds, runs)
    else:
        pairs = [_numbers(condition, runs, seed) for seed in study.seeds]
        ones = [[one] for one, _ in pairs]
        others = None if minus is None else [[other] for _, other in pairs]
    means = [fmean(row) for row in ones]
    if others is not None:
        means = [mine - fmean(theirs) for mine, theirs in zip(means, others, strict=True)]
    if not is_share:
        sides = [(condition.measure, [one for [one] in ones], runs[of.cell, study.seeds[0]])]
        if minus is not None and others is not None:
            sides += [(condition.minus_measure, [one for [one] in others], runs[minus.cell, study.seeds[0]])]
        interval = interval_of(*sides)
    elif minus is None or others is None:
        interval = mean_over_seeds(ones)
    else:
        paired = _is_paired(study, of, minus, runs)
        interval = possible(difference_over_seeds(ones, others, paired=paired), is_difference=True)
    return Finding(
        condition=condition,
        interval=interval,
        by_seed=tuple(means),
        num_items=len(ones[0]) if is_share else None,
        verdict=verdict_of(interval, above=condition.above, below=condition.below),
    )


def _is_paired(study: Study, of: Side, minus: Side, runs: Runs) -> bool:
    """Whether the runs of one seed belong together.

    A run and where it started from do, and runs of one seed that have a start of their own: a model, or a trunk. Two
    methods that start from one model for all seeds meet in their seeds by chance alone.
    """
    if minus.cell == of.cell or study.builds:
        return True
    ones, others = (
        [_read(read_json, runs[side.cell, seed].summary).get("model") for seed in study.seeds] for side in (of, minus)
    )
    return ones == others and len(set(ones)) == len(ones)


def interval_of(*sides: tuple[str, Sequence[float], RunFolder]) -> Interval:
    """The interval over seeds of a number, or of the difference of two, seed by seed.

    Where all seeds give the very same, t's would say that it is certain. Of the probe's rates the interval is then for
    other prompts: Wilson's, of which the distances to both ends are squared and added for a difference
    (`weighted_wilson` names the source). As elsewhere, prompts count once, however many seeds have answered them. Of
    anything else nothing is known of the spread, and nothing is decided.

    Args:
        sides: one or two: a measure, its value of each seed, and one of the runs, which knows how many prompts there
            were.
    """
    means = list(sides[0][1])
    if len(sides) > 1:
        means = [mine - theirs for mine, theirs in zip(means, sides[1][1], strict=True)]
    interval = over_seeds(means)
    if len(means) < 2 or interval.high - interval.low > 1e-12:
        are_shares = all(is_rate(measure) for measure, _, _ in sides)
        return possible(interval, is_difference=len(sides) > 1) if are_shares else interval
    estimate = interval.estimate
    if not all(measure.startswith("probe/") and is_rate(measure) for measure, _, _ in sides):
        return Interval(estimate, -math.inf, math.inf)
    one, *others = (
        wilson(round(fmean(values) * num_prompts), num_prompts)
        for _, values, run in sides
        for num_prompts in [int(run.read_config()["scale"]["probe_size"])]
    )
    if not others:
        return Interval(estimate, one.low, one.high)
    [other] = others
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    return Interval(estimate, max(-1.0, estimate - below), min(1.0, estimate + above))


def possible(interval: Interval, *, is_difference: bool) -> Interval:
    """What of an interval a share can be, or a difference of two: t's of few seeds reach farther.

    One that has no ends, for nothing is known of its spread, stays as it is.
    """
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return interval
    least = -1.0 if is_difference else 0.0
    return replace(interval, low=max(least, interval.low), high=min(1.0, interval.high))


def over_seeds(means: Sequence[float]) -> Interval:
    """One number a seed; a single one has no interval, and so decides nothing."""
    if len(means) < 2:
        return Interval(means[0], -math.inf, math.inf)
    return curve_band([[mean] for mean in means])[0]


def _shares(measure: str, side: Side, seeds: Sequence[int], runs: Runs) -> list[list[float]]:
    """The value of each item, [seeds, items], in one order for all."""
    tables = [_items(runs[side.cell, seed], side.when) for seed in seeds]
    ids = sorted(tables[0])
    for seed, table in zip(seeds, tables, strict=True):
        if sorted(table) != ids:
            raise StudyError(
                f"{runs[side.cell, seed].path}: it was asked other items than {runs[side.cell, seeds[0]].path}"
            )
    return [[_value(measure, table[one]) for one in ids] for table in tables]


def _value(measure: str, item: Mapping[str, Any]) -> float:
    if measure == "benchmark/accuracy_with_guesses" and item["choice"] is None:
        return 1 / len(item["choices"])
    if measure == "benchmark/reflection":
        return float(bool(item["reflection"]))
    if measure == "benchmark/readable":
        return float(item["choice"] is not None)
    column = {
        "benchmark/accuracy": "correct",
        "benchmark/accuracy_with_guesses": "correct",
        "benchmark/blank_accuracy": "blank_correct",
        "benchmark/truncated": "is_truncated",
    }[measure]
    return float(item[column])


def _numbers(condition: Condition, runs: Runs, seed: int) -> tuple[float, float]:
    """One number of each side; the second is 0 where nothing is subtracted."""
    sides = [(condition.measure, condition.of), (condition.minus_measure, condition.minus)]
    asked = [(measure, side, runs[side.cell, seed]) for measure, side in sides if side is not None]
    budget = min(_rollouts(run)[-1] for _, _, run in asked) if condition.at_equal_rollouts else None
    found = [number(measure, side.when, run, over=condition.over, budget=budget) for measure, side, run in asked]
    return found[0], found[1] if len(found) > 1 else 0.0


def number(measure: str, when: When, run: RunFolder, *, over: int = 1, budget: float | None = None) -> float:
    """A measure of one run that is no share.

    Args:
        measure: ``benchmark/length``, one of ``probed/``, or a curve.
        when: before training or after it; of a curve, its first or its last values.
        run: finished.
        over: how many values of a curve are averaged.
        budget: rollouts after which a curve is read no further; None reads all.

    Raises:
        StudyError: the run lacks it.
    """
    if measure == LENGTH:
        return fmean(item["num_tokens"] for item in _items(run, when).values())
    if measure.startswith(PROBED):
        return _probed(measure, when, run)
    rows = _metrics(run)
    if budget is not None:
        rows = [row for row, had in zip(rows, _rollouts(run), strict=True) if had <= budget]
    values = [row[measure] for row in rows if row.get(measure) is not None]
    if not values:
        raise StudyError(f"{run.path}: it has no curve {measure}; see the names in {run.metrics.name}")
    return fmean(values[:over] if when == "before" else values[-over:])


def by_seed(measure: str, side: Side, seeds: Sequence[int], runs: Runs) -> tuple[float, ...]:
    """A measure of each seed's run; of a share, over all items.

    Raises:
        StudyError: a run lacks it.
    """
    if measure in SHARES:
        return tuple(fmean(row) for row in _shares(measure, side, seeds, runs))
    return tuple(number(measure, side.when, runs[side.cell, seed]) for seed in seeds)


def _mean_after(measure: str, cell: str, seeds: Sequence[int], runs: Runs) -> float:
    return fmean(number(measure, "after", runs[cell, seed]) for seed in seeds)


def _rollouts(run: RunFolder) -> list[float]:
    """The rollouts sampled by each row of ``metrics.jsonl``, those included that the run did not learn from."""
    method, had = run.read_config()["method"], 0.0
    if "prompts_per_step" not in method:
        raise StudyError(
            f"{run.path}: method={method.get('name')} samples no rollouts, at_equal_rollouts has none to count"
        )
    counts = []
    for row in _metrics(run):
        if row["step"] > 0:
            prompts = row.get("groups/num_prompts", method["prompts_per_step"])
            had += prompts * method["trl"]["num_generations"]
        counts.append(had)
    return counts


def _metrics(run: RunFolder) -> list[dict[str, Any]]:
    return _read(lambda _: run.read_metrics(), run.metrics)


def _probed(measure: str, when: When, run: RunFolder) -> float:
    row = probed_row(*measure.removeprefix(PROBED).split("/", 2), when, run)
    if row is None:
        raise StudyError(f"{run.reflection}: it has no {measure} of the model {when} training")
    return float(row["estimate"])


def probed_row(section: str, measure: str, condition: str, when: When, run: RunFolder) -> dict[str, Any] | None:
    """A row of ``reflection.json`` on newly sampled rollouts, with nothing subtracted; None where nothing was found.

    Raises:
        StudyError: the file is not there, or not whole.
    """
    sections = _read(read_json, run.reflection)["sections"]
    for row in next((part["rows"] for part in sections if part["name"] == section), []):
        asked = (row["measure"], row["condition"], row["against"], row["model"], row["source"])
        if asked == (measure, condition, None, when, "probe") and row["estimate"] is not None:
            return row
    return None


def _items(run: RunFolder, when: When) -> dict[str, dict[str, Any]]:
    """The benchmark's items by id."""
    rows = _read(pyarrow.parquet.read_table, run.evaluation_items).to_pylist()
    found = {row["example_id"]: row for row in rows if row["when"] == when}
    if not found:
        raise StudyError(f"{run.path}: its benchmark was not measured {when} training")
    return found
