"""What a finished run adds to its curves: the benchmark's numbers by scorer and category, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visual_r1.run_folder import RunFolder


def result_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``summary.json`` under flat names.

    ``benchmark/accuracy/<scorer>`` is the trained policy's accuracy, or the only one's where nothing was trained, and
    ``benchmark/accuracy_before/<scorer>`` the starting point's. Each comes with its interval's ends, ``.../low`` and
    ``.../high``, and by category, ``.../<category>``. What a scorer could not score is left out.
    """
    names = {"after": "benchmark/accuracy", "before": "benchmark/accuracy_before"}
    shared = {f"benchmark/{key}": summary[key] for key in ("chance", "majority") if key in summary}
    measured = {
        name: value
        for scorer, moments in summary.get("scorers", {}).items()
        for when, report in moments.items()
        for name, value in _accuracies(f"{names[when]}/{scorer}", report)
    }
    seconds = {} if "wall_seconds" not in summary else {"time/run": summary["wall_seconds"]}
    return {**shared, **measured, **seconds}


def _accuracies(name: str, report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if report["accuracy"] is None:
        return
    yield name, report["accuracy"]
    yield f"{name}/low", report["accuracy_interval"][0]
    yield f"{name}/high", report["accuracy_interval"][1]
    for parts in ("by_category", "by_group"):
        for part, its_report in report.get(parts, {}).items():
            yield from _accuracies(f"{name}/{part}", its_report)


def result_files(folder: RunFolder) -> dict[str, Path]:
    """The files of a run that its numbers can be checked by, those that there are, by name."""
    files = (
        *(folder.config, folder.provenance, folder.metrics, folder.summary),
        *(folder.evaluation, folder.evaluation_items, folder.figure, folder.path / "report.html"),
    )
    return {path.name: path for path in files if path.exists()}
