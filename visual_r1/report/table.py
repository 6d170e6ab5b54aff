"""The table that a run ends with: what it could before, what it can after, and what makes the two readable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.files import read_json
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
    # Without a training step there is no before and after, only a measurement.
    is_trained = bool(summary.get("steps"))
    moments = ("before", "after") if is_trained else ("after",)
    rows: list[tuple[str, ...]] = [
        ("", *(moments if is_trained else ("measured",)), "chance", "majority"),
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
    facts = [
        f"seed {summary.get('seed', '-')}",
        f"{summary.get('steps', '-')} steps",
        _duration(summary.get("wall_seconds")) + (" since it was resumed" if summary.get("is_resumed") else ""),
        f"commit {str(summary.get('commit') or '-')[:10]}" + (" with changes" if summary.get("is_dirty") else ""),
    ]
    lines = [
        f"{summary.get('name', 'run')}: {', '.join(facts)}",
        f"on {summary.get('benchmark', '-')}; 95 % intervals",
        "",
        *_aligned(rows),
    ]
    if figure is not None:
        lines += ["", f"figure: {figure}"]
    return "\n".join(lines)


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


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
