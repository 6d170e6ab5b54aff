"""Single phrases of a keyword list, all of them: who says which, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from visual_r1.report.curves import PHRASE, Entry, phrases_said
from visual_r1.report.runs import Run
from visual_r1.report.tables import NOTHING, Cell, Table


def phrase_table(entries: Sequence[Entry]) -> Table | None:
    """The share of completions that hold a phrase, at a run's first and last measurement; None where none was said."""
    said, never = phrases_said(run for entry in entries for run in entry.runs)
    if not said:
        return None
    unsaid = f" Never said: {', '.join(map(_words, never))}." if never else ""
    return Table(
        title="All phrases that were said",
        note="Percent of completions, first → last visit of the held-out probe (of training where there is none), mean "
        f"over seeds.{unsaid}",
        header=("phrase", *(entry.label for entry in entries)),
        rows=tuple((Cell(text=_words(one)), *(_cell(entry, one) for entry in entries)) for one in said),
    )


def _cell(entry: Entry, phrase: str) -> Cell:
    ends = [found for run in entry.runs if (found := _ends(run, phrase)) is not None]
    if not ends:
        return NOTHING
    first, last = (fmean(values) for values in zip(*ends, strict=True))
    return Cell(text=f"{100 * first:.1f} → {100 * last:.1f}", tone="" if first or last else "quiet")


def _ends(run: Run, phrase: str) -> tuple[float, float] | None:
    for key in (f"probe/{PHRASE}{phrase}", f"{PHRASE}{phrase}"):
        values = [row[key] for row in run.rows if key in row]
        if values:
            return values[0], values[-1]
    return None


def _words(phrase: str) -> str:
    return phrase.replace("_", " ")
