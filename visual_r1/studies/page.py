"""A study's results as files: ``results.json``, and a README that nobody writes by hand."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visual_r1.files import write_json, write_text
from visual_r1.report.conditions import Bar, conditions_figure
from visual_r1.report.dose import Mark, Panel, dose_figure
from visual_r1.statistics import Interval
from visual_r1.studies.causal import Forced
from visual_r1.studies.dose import Curve
from visual_r1.studies.study import LENGTH, Condition, Study, is_rate
from visual_r1.studies.verdict import Finding, Judgement

_COMMIT = re.compile(r"\b[0-9a-f]{40}\b")
RESULTS, README, FIGURE, CURVE = "results.json", "README.md", "figure.svg", "curve.svg"


def record(
    judgement: Judgement, *, command: str, curve: Curve | None = None, forced: Sequence[Forced] = ()
) -> dict[str, Any]:
    """The contents of ``results.json``; estimate and interval at the top are those of the first condition."""
    study, first = judgement.study, judgement.findings[0]
    return {
        "claim": study.claim,
        "paper": f"{study.paper} ({study.source})",
        "estimate": first.interval.estimate,
        "interval": _ends(first.interval),
        "seeds": list(study.seeds),
        "items": first.num_items,
        "verdict": judgement.verdict,
        "command": command,
        "minutes": _minutes(judgement),
        "commit": next(iter(judgement.commits)) if len(judgement.commits) == 1 else None,
        "commits": {version: list(names) for version, names in judgement.commits.items()},
        "given": [_condition_record(finding) for finding in judgement.given],
        "conditions": [_condition_record(finding) for finding in judgement.findings],
        "chosen": dict(judgement.chosen),
        "curve": None if curve is None else curve.record(),
        "forced": [one.record() for one in forced],
    }


def _condition_record(finding: Finding) -> dict[str, Any]:
    condition = finding.condition
    return {
        "says": condition.says,
        "measure": condition.measure,
        "of": str(condition.of),
        "minus": None if condition.minus is None else str(condition.minus),
        "minus_measure": None if condition.minus is None else condition.minus_measure,
        "over": condition.over,
        "at_equal_rollouts": condition.at_equal_rollouts,
        "above": _finite(condition.above),
        "below": _finite(condition.below),
        "estimate": finding.interval.estimate,
        "interval": _ends(finding.interval),
        "by_seed": list(finding.by_seed),
        "items": finding.num_items,
        "verdict": finding.verdict,
    }


def write(
    judgement: Judgement,
    folder: Path,
    *,
    command: str,
    behind: str,
    curve: Curve | None = None,
    forced: Sequence[Forced] = (),
) -> None:
    """Writes the results of a study into its folder; the arguments are those of `readme`."""
    write_json(folder / RESULTS, record(judgement, command=command, curve=curve, forced=forced))
    write_text(folder / README, readme(judgement, command=command, behind=behind, curve=curve, forced=forced))
    conditions_figure([_bar(finding) for finding in judgement.findings], folder / FIGURE, title=judgement.study.claim)
    if curve is not None:
        _draw(curve, forced, folder / CURVE)


def readme(
    judgement: Judgement,
    *,
    command: str,
    behind: str,
    curve: Curve | None = None,
    forced: Sequence[Forced] = (),
) -> str:
    """The page of a study.

    Args:
        judgement: its verdict.
        command: that makes it again.
        behind: what every run has behind its cell, K for its seed.
        curve: of a study with a dose.
        forced: the causal test, of a study whose runs are probed.
    """
    study = judgement.study
    builds = {name: " ".join(typed).replace("{seed}", "K") for name, typed in study.builds.items()}
    cells = [f"| `{name}` | `visual-r1 {typed}` |" for name, typed in builds.items()]
    cells += [f"| `{name}` | `python run.py {' '.join(typed)} {behind}` |" for name, typed in study.cells.items()]
    if study.probe is not None:
        of = ", ".join(f"`{cell}`" for cell in study.probed)
        cells.append(f"| {of} | `visual-r1 probe RUN {shlex.join(study.probe)}` |")
    return "\n".join(
        (
            f"# {study.claim}",
            "",
            f"**{judgement.verdict.capitalize()}** in the organism, with seeds {_listed(study.seeds)}.",
            "",
            f"The paper: {study.paper} ({study.source}).",
            "",
            *_table("the claim holds if", judgement.findings),
            *_table("it can be decided only if", judgement.given),
            *_chosen(judgement),
            "A condition holds if its whole interval lies where the claim says, does not hold if none of it does, and "
            "is not resolved otherwise. Intervals are for other seeds and, of shares, other items "
            "([statistics](../../docs/statistics.md)).",
            "",
            "![Each condition's interval beside what it asks for](figure.svg)",
            "",
            "Point and bar are the estimate and its interval, ticks the single seeds; green is where the claim says "
            "that the number lies.",
            "",
            *_curve(curve),
            *_forced(forced),
            "## What it cannot say",
            "",
            study.cannot_say,
            "",
            "## The runs",
            "",
            "| cell | command |",
            "| --- | --- |",
            *cells,
            "",
            f"K is {_listed(study.seeds)}{_where_builds_lie(study)}. All of it again: `{command}`; "
            f"{_minutes(judgement):.0f} minutes of runs, one after another. {_versions(judgement)}",
            "",
            "This page is generated.",
            "",
        )
    )


def _table(head: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    rows = [
        f"| {finding.condition.says} | {_asked(finding.condition)} | {shown(finding)} | {_by_seed(finding)} | "
        f"**{finding.verdict}** |"
        for finding in findings
    ]
    head = f"| {head} | measured | estimate and 95 % interval | by seed | verdict |"
    return [head, "| --- | --- | --- | --- | --- |", *rows, ""]


def _chosen(judgement: Judgement) -> list[str]:
    lines = []
    for name, choice in judgement.study.chosen.items():
        others = ", ".join(f"`{cell}`" for cell in choice.of)
        lines += [f"`{name}` is `{judgement.chosen[name]}`, the highest of {others} by `{choice.by}`.", ""]
    return lines


def _curve(curve: Curve | None) -> list[str]:
    if curve is None:
        return []
    dose = curve.dose
    rows = []
    for point in curve.points:
        amount, found = "beside the curve" if point.dose is None else f"{point.dose:g}", point.interval
        rows.append(
            f"| `{point.cell}` | {amount} | {_by_seed_of(point.before)} | {_by_seed_of(point.after)} | "
            f"{found.estimate:.2f}{_range(found)} | "
            f"{_in_percent(point.accuracy_before)} → {_in_percent(point.accuracy)} | "
            f"{_in_tokens(point.length_before)} → {_in_tokens(point.length)} |"
        )
    if curve.interval is not None:
        found = f"{curve.interval.estimate:.2f} [{max(0.0, curve.interval.low):.2f}, {curve.interval.high:.2f}]"
    else:
        found = "not found within these doses in every seed"
    by_seed = ", ".join(f"{one:.2f}" if math.isfinite(one) else "never" for one in curve.reaches)
    return [
        "## The curve",
        "",
        f"![{dose.measure} before and after training against {dose.label}]({CURVE})",
        "",
        f"| cell | {dose.label} | before, by seed | after, by seed | fit after and 95 % interval over seeds | "
        "accuracy on the benchmark, before → after by seed, % | tokens a response there |",
        "| --- | ---: | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"The dose at which `{dose.measure}` has fallen to {dose.falls_to:g}: {found}; by seed {by_seed}. Each seed's "
        "curve is the nearest that does not rise (isotonic regression), straight between doses; intervals are t's over "
        "seeds, and where these agree exactly, Wilson's over prompts.",
        "",
    ]


def _range(found: Interval) -> str:
    return f" [{found.low:.2f}, {found.high:.2f}]" if math.isfinite(found.low) else ", no interval"


def _in_percent(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in values)


def _in_tokens(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


def _forced(forced: Sequence[Forced]) -> list[str]:
    """The causal test: a row a condition, a column a cell before training or after it."""
    if not forced:
        return []
    columns = dict.fromkeys((one.cell, one.when) for one in forced)
    conditions = dict.fromkeys((one.condition, one.is_difference) for one in forced)
    found = {(one.condition, one.cell, one.when): one for one in forced}
    rows = []
    for condition, is_difference in conditions:
        cells = [_forced_cell(found[condition, cell, when]) for cell, when in columns]
        rows.append(f"| {f'**{condition}**' if is_difference else condition} | {' | '.join(cells)} |")
    return [
        "## What a reflection is worth",
        "",
        f"| answered after | {' | '.join(f'`{cell}` {when}' for cell, when in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *rows,
        "",
        "Right answers, %, greedily and at once after that thought; differences in points, on the same items. The "
        "mean of the seeds, its 95 % interval (t), and the items of each seed: those in which a completion reflected, "
        "or did not. After training hardly any may be left of one kind, and those are not typical "
        "([what is forced](../../docs/reflection.md)).",
        "",
    ]


def _forced_cell(one: Forced) -> str:
    items = f"({', '.join(map(str, one.num_items))})"
    if one.interval is None:
        known = [100 * value for value in one.by_seed if value is not None]
        return f"{', '.join(f'{value:.1f}' for value in known) or '–'} {items}"
    sign = "+" if one.is_difference else ""
    estimate, low, high = (100 * value for value in (one.interval.estimate, one.interval.low, one.interval.high))
    if not one.is_difference:
        low, high = max(0.0, low), min(100.0, high)
    return f"{estimate:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}] {items}"


def _by_seed_of(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _draw(curve: Curve, forced: Sequence[Forced], path: Path) -> None:
    marks = [
        Mark(
            label=point.cell if point.dose is None else f"{point.dose:g}",
            before=point.before,
            after=point.after,
            estimate=point.interval.estimate,
            low=point.interval.low,
            high=point.interval.high,
            is_on_curve=point.dose is not None,
        )
        for point in curve.points
    ]
    doses = list(curve.dose.doses.values())

    def place(amount: float) -> float:
        return float(np.interp(amount, doses, range(len(doses))))

    at = curve.interval
    dose_figure(
        marks,
        [
            Panel(
                cell=cell,
                is_before=when == "before",
                bars=tuple(
                    (one.condition, tuple(value for value in one.by_seed if value is not None))
                    for one in forced
                    if (one.cell, one.when, one.is_difference) == (cell, when, False)
                ),
            )
            for cell, when in dict.fromkeys((one.cell, one.when) for one in forced)
        ],
        path,
        label=curve.dose.label,
        measure=curve.dose.measure,
        falls_to=curve.dose.falls_to,
        at=None if at is None else (place(at.estimate), place(at.low), place(at.high)),
    )


def shown(finding: Finding) -> str:
    """An estimate with its interval, in per cent or points where it is a share."""
    return shown_record(_condition_record(finding))


def shown_record(one: Mapping[str, Any]) -> str:
    """The same of an entry of ``conditions`` in ``results.json``."""
    scale, unit = _scale(one["measure"], is_difference=one["minus"] is not None)
    form = f"{'+' if one['minus'] is not None else ''}.1f"
    low, high = one["interval"]
    if low is None or high is None:
        why = "from one seed" if len(one["by_seed"]) == 1 else "for all seeds give the same"
        return f"{scale * one['estimate']:{form}}{unit}, no interval {why}"
    return f"{scale * one['estimate']:{form}}{unit} [{scale * low:{form}}, {scale * high:{form}}]"


def _bar(finding: Finding) -> Bar:
    condition, (scale, unit) = finding.condition, _scale_of(finding.condition)
    return Bar(
        says=condition.says,
        unit=unit.strip() or condition.measure,
        estimate=scale * finding.interval.estimate,
        low=scale * finding.interval.low,
        high=scale * finding.interval.high,
        by_seed=tuple(scale * value for value in finding.by_seed),
        above=scale * condition.above,
        below=scale * condition.below,
        verdict=finding.verdict,
    )


def _scale(measure: str, *, is_difference: bool) -> tuple[float, str]:
    """What a number is multiplied with to be shown, and its unit."""
    if measure == LENGTH or measure.endswith("mean_length") or ("length/" in measure and measure.endswith("/mean")):
        return 1.0, " tokens"
    if measure.endswith("per_1k_tokens"):
        return 1.0, " per 1,000 tokens"
    if not is_rate(measure):
        return 1.0, ""
    return 100.0, " points" if is_difference else " %"


def _scale_of(condition: Condition) -> tuple[float, str]:
    return _scale(condition.measure, is_difference=condition.minus is not None)


def _asked(condition: Condition) -> str:
    scale, unit = _scale_of(condition)
    what = f"`{condition.measure}` of `{condition.of}`"
    if condition.minus is not None:
        measured = "" if condition.minus_measure == condition.measure else f"`{condition.minus_measure}` of "
        what += f" minus {measured}`{condition.minus}`"
    if condition.over > 1:
        what += f", mean of {condition.over} values"
    if condition.at_equal_rollouts:
        what += ", after equally many rollouts,"
    return f"{what} {_bounds(scale, unit, _finite(condition.above), _finite(condition.below))}"


def bounds_of(one: Mapping[str, Any]) -> str:
    """Where an entry of ``conditions`` in ``results.json`` is to lie: "above 14 points"."""
    scale, unit = _scale(one["measure"], is_difference=one["minus"] is not None)
    return _bounds(scale, unit, one["above"], one["below"])


def _bounds(scale: float, unit: str, above: float | None, below: float | None) -> str:
    sides = (("above", above), ("below", below))
    return " and ".join(f"{word} {scale * bound:g}{unit}" for word, bound in sides if bound is not None)


def _minutes(judgement: Judgement) -> float:
    return round(judgement.minutes, 1)


def _where_builds_lie(study: Study) -> str:
    if not study.builds:
        return ""
    return "; `{folder}` is `RUNS/builds/NAME/seedK` of the build of that name, and `{NAME}` that of another"


def _by_seed(finding: Finding) -> str:
    scale, _ = _scale_of(finding.condition)
    return ", ".join(f"{scale * value:.1f}" for value in finding.by_seed)


def _versions(judgement: Judgement) -> str:
    versions = judgement.commits
    if len(versions) == 1:
        return f"Commit {_short(next(iter(versions)))}."
    parts = [f"{_short(version)} made {', '.join(names)}" for version, names in versions.items()]
    return f"**The runs are of {len(versions)} code versions**: {'; '.join(parts)}."


def _short(version: str) -> str:
    return _COMMIT.sub(lambda found: found[0][:10], version)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
