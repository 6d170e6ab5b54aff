"""The report as Markdown, for a README or a pull request: its tables, its warnings, what is left out."""

from __future__ import annotations

from visual_r1.report.across import Findings
from visual_r1.report.tables import Cell, Table


def as_markdown(found: Findings) -> str:
    """The tables of a report; curves, rollouts and each causal measure are in the page alone."""
    names = ", ".join(f"{one.label} ({len(one.seeds)})" for one in found.by_group)
    lines = ["# Report", "", f"{len(found.runs.runs)} runs; finished, with their number of seeds: {names or 'none'}."]
    short = found.reflection_summary()
    for table in (*found.main_tables(), *found.detail_tables(), *([short] if short else [])):
        lines += ["", *_table(table)]
    if found.cautions:
        lines += ["", "## Warnings", ""]
        lines += [f"- **{_plain(one.about)}**, {_plain(one.where)}: {_plain(one.text)}." for one in found.cautions]
    if found.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- {_plain(one.where)}: {_plain(one.what)}: {_plain(one.why)}." for one in found.left_out]
    if found.differences:
        lines += ["", "## What the configurations differ in", ""]
        labels = [_plain(run.label) for run in found.runs.runs]
        lines += [f"| | {' | '.join(labels)} |", f"| --- |{' --- |' * len(labels)}"]
        for key, values in found.differences.items():
            lines.append(f"| {_plain(key)} | {' | '.join(_plain(value) for value in values)} |")
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    # The line for the eye is drawn, not written.
    kept = [column for column in range(len(table.header)) if not any(row[column].scale for row in table.rows)]
    return [
        f"## {_plain(table.title)}",
        "",
        f"| {' | '.join(_plain(table.header[column]) for column in kept)} |",
        f"| {' | '.join('---' if column == 0 else '---:' for column in kept)} |",
        *(f"| {' | '.join(_cell(row[column]) for column in kept)} |" for row in table.rows),
        "",
        _plain(table.note),
    ]


def _cell(cell: Cell) -> str:
    return _plain(f"{cell.text} {cell.below}".strip())


def _plain(text: str) -> str:
    """Text that stays text in a Markdown table: names come from configurations."""
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return escaped.replace("[", "\\[").replace("`", "\\`").replace("*", "\\*")
