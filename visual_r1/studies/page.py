"""A study's results as files: ``results.json``, and a README that nobody writes by hand."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.files import write_json, write_text
from visual_r1.report.conditions import Bar, conditions_figure
from visual_r1.statistics import Interval
from visual_r1.studies.study import SHARES, Condition
from visual_r1.studies.verdict import Finding, Judgement

RESULTS, README, FIGURE = "results.json", "README.md", "figure.svg"


def record(judgement: Judgement, *, command: str) -> dict[str, Any]:
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
        "minutes": round(judgement.minutes, 1),
        "commit": next(iter(judgement.commits)) if len(judgement.commits) == 1 else None,
        "commits": {version: list(names) for version, names in judgement.commits.items()},
        "conditions": [_condition_record(finding) for finding in judgement.findings],
    }


def _condition_record(finding: Finding) -> dict[str, Any]:
    condition = finding.condition
    return {
        "says": condition.says,
        "measure": condition.measure,
        "of": str(condition.of),
        "minus": None if condition.minus is None else str(condition.minus),
        "above": _finite(condition.above),
        "below": _finite(condition.below),
        "estimate": finding.interval.estimate,
        "interval": _ends(finding.interval),
        "by_seed": list(finding.by_seed),
        "items": finding.num_items,
        "verdict": finding.verdict,
    }


def write(judgement: Judgement, folder: Path, *, command: str) -> None:
    """Writes the results of a study into its folder."""
    write_json(folder / RESULTS, record(judgement, command=command))
    write_text(folder / README, readme(judgement, command=command))
    conditions_figure([_bar(finding) for finding in judgement.findings], folder / FIGURE, title=judgement.study.claim)


def readme(judgement: Judgement, *, command: str) -> str:
    """The page of a study."""
    study = judgement.study
    rows = [
        f"| {finding.condition.says} | {_asked(finding.condition)} | {shown(finding)} | {_by_seed(finding)} | "
        f"**{finding.verdict}** |"
        for finding in judgement.findings
    ]
    cells = [f"| `{name}` | `python run.py {shlex.join(typed)} seed=...` |" for name, typed in study.cells.items()]
    return "\n".join(
        (
            f"# {study.claim}",
            "",
            f"**{judgement.verdict.capitalize()}** in the organism, with seeds {_listed(study.seeds)}.",
            "",
            f"The paper: {study.paper} ({study.source}).",
            "",
            "| the claim holds if | measured | estimate and 95 % interval | by seed | verdict |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "A condition holds if its whole interval lies where the claim says, does not hold if none of it does, and "
            "is not resolved otherwise. Intervals are for other seeds and, of shares, other items "
            "([statistics](../../docs/statistics.md)).",
            "",
            "![Each condition's interval beside what it asks for](figure.svg)",
            "",
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
            f"All of it again: `{command}`; {judgement.minutes:.0f} minutes of runs, one after another. "
            f"{_versions(judgement)}",
            "",
            "This page is generated.",
            "",
        )
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
        return f"{scale * one['estimate']:{form}}{unit}, no interval from one seed"
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
    is_share = measure in SHARES or measure.endswith(("accuracy", "_rate", "_ratio")) or "_rate_" in measure
    if not is_share:
        return 1.0, ""
    return 100.0, " points" if is_difference else " %"


def _scale_of(condition: Condition) -> tuple[float, str]:
    return _scale(condition.measure, is_difference=condition.minus is not None)


def _asked(condition: Condition) -> str:
    scale, unit = _scale_of(condition)
    what = f"`{condition.measure}` of `{condition.of}`"
    if condition.minus is not None:
        what += f" minus `{condition.minus}`"
    bounds = [
        f"{word} {scale * bound:g}{unit}"
        for word, bound in (("above", condition.above), ("below", condition.below))
        if math.isfinite(bound)
    ]
    return f"{what} {' and '.join(bounds)}"


def _by_seed(finding: Finding) -> str:
    scale, _ = _scale_of(finding.condition)
    return ", ".join(f"{scale * value:.1f}" for value in finding.by_seed)


def _versions(judgement: Judgement) -> str:
    versions = judgement.commits
    if len(versions) == 1:
        return f"Commit {next(iter(versions))[:10]}{' with changes' if 'with changes' in next(iter(versions)) else ''}."
    parts = [f"{version[:10]} made {', '.join(names)}" for version, names in versions.items()]
    return f"**The runs are of {len(versions)} code versions**: {'; '.join(parts)}."


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
