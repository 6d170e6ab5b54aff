"""The table that a run ends with: what it could before, what it can after, and what makes the two readable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.files import read_json
from visual_r1.report.columns import aligned
from visual_r1.report.published_table import beside_lines
from visual_r1.run_folder import RunFolder, RunFolderError


def table_of_run(folder: RunFolder) -> str:
    """The table of a finished run.

    Raises:
        RunFolderError: the run is not finished, or there is none.
    """
    folder.read_config()
    if not folder.is_finished:
        raise RunFolderError(f"{folder.path} is not finished, so it has no table yet: type its command again")
    return run_table(read_json(folder.summary), figure=folder.figure if folder.figure.exists() else None)


def print_run(summary: Mapping[str, Any], *, figure: Path | None = None) -> None:
    """Prints what a run ends with, apart from what it has printed before."""
    print(f"\n{run_table(summary, figure=figure)}", flush=True)


def run_table(summary: Mapping[str, Any], *, figure: Path | None = None) -> str:
    """A run's outcome as plain text.

    Args:
        summary: The contents of ``summary.json``; what it lacks is shown as "-".
        figure: Where the curves are drawn.
    """
    moments = _moments(summary)
    rows: list[tuple[str, ...]] = [
        ("", *moments.values(), "chance", "majority"),
        _accuracy_row("accuracy", summary, [_suffixed(summary, "accuracy", moment) for moment in moments]),
        *(
            _accuracy_row(f"  {category}", measured.get("after", {}), [measured.get(moment, {}) for moment in moments])
            for category, measured in summary.get("by_category", {}).items()
        ),
        *(
            (label, *(show(_suffixed(summary, key, moment), key) for moment in moments), "", "")
            for label, key, show in (
                ("on blank images", "blank_accuracy", _share),
                ("answers that can be read", "parse_rate", _share),
                ("cut at the limit", "truncated_rate", _share),
                ("same words in both orders", "swap_consistency", _share),
                ("right in both orders", "both_orders_accuracy", _share),
                ("response length, tokens", "length", _number),
                ("reflection rate", "reflection", _share),
                # The benchmark is greedy; what a policy does only sometimes shows where it is sampled.
                ("probe, sampled: accuracy", "probe_accuracy", _share),
                ("probe, sampled: length", "probe_length", _number),
                ("probe, sampled: reflection", "probe_reflection", _share),
            )
            if any(_suffixed(summary, key, moment)[key] is not None for moment in moments)
        ),
    ]
    lines = [
        f"{summary.get('name', 'run')}: {', '.join(_facts(summary))}",
        f"on {summary.get('benchmark', '-')}; 95 % intervals",
        "",
        *aligned(rows),
        *_scorer_lines(summary, moments),
    ]
    if published := beside_lines(summary):
        lines += ["", *published]
    if figure is not None:
        lines += ["", f"figure: {figure}"]
    return "\n".join(lines)


def _moments(summary: Mapping[str, Any]) -> dict[str, str]:
    """When something was measured, and how a table calls it: without a training step there is no before and after."""
    if summary.get("steps") or "accuracy_before" in summary:
        return {"before": "before", "after": "after"}
    return {"after": "measured"}


def _facts(summary: Mapping[str, Any]) -> list[str]:
    """How the numbers came about; responses made elsewhere come without a seed and a commit."""
    if "num_responses" in summary:
        missing = summary.get("num_missing")
        return [
            f"{summary['num_responses']} responses" + (f", {missing} missing and counted as wrong" if missing else "")
        ]
    return [
        f"seed {summary.get('seed', '-')}",
        f"{summary.get('steps', '-')} steps",
        _duration(summary.get("wall_seconds")) + (" since it was resumed" if summary.get("is_resumed") else ""),
        f"commit {str(summary.get('commit') or '-')[:10]}" + (" with changes" if summary.get("is_dirty") else ""),
    ]


def _scorer_lines(summary: Mapping[str, Any], moments: Mapping[str, str]) -> list[str]:
    """The scorers of a run side by side; nothing where the headline's is the only one."""
    scorers = summary.get("scorers", {})
    if len(scorers) < 2:
        return []
    rows = [("scorer", "", "accuracy", "chance", "majority", "on blank images", "read")]
    problems = []
    for name, measured in scorers.items():
        for moment, label in moments.items():
            values = measured.get(moment, {})
            keys = ("accuracy", "chance", "majority", "blank_accuracy", "parse_rate")
            rows.append((name, label, *(_share(values, key) for key in keys)))
        if problem := measured.get("after", {}).get("problem"):
            problems.append(f"no {name}: {problem}")
    return [
        "",
        "The same responses by each scorer; read: an answer was found where the rule looks first",
        *aligned(rows),
        *problems,
    ]


def _accuracy_row(label: str, context: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Accuracy never stands alone: its items, its interval, and what guessing and the most frequent letter reach."""
    accuracies = (_share(values, "accuracy") for values in measured)
    label = f"{label} ({context.get('num_items', '-')} items)"
    return (label, *accuracies, _share(context, "chance"), _share(context, "majority"))


def _suffixed(summary: Mapping[str, Any], key: str, moment: str) -> dict[str, Any]:
    """A flat summary's entry as a report has it: ``accuracy_after_interval`` becomes ``accuracy_interval``."""
    return {f"{key}{end}": summary.get(f"{key}_{moment}{end}") for end in ("", "_interval")}


def _share(values: Mapping[str, Any], key: str) -> str:
    """A share as per cent, with its interval where one lies beside it."""
    value = values.get(key)
    if value is None:
        return "-"
    text = f"{100 * value:.1f} %"
    if interval := values.get(f"{key}_interval"):
        low, high = interval
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def _number(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return "-" if value is None else f"{value:.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
