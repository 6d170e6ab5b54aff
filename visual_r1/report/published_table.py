"""Published rows as text, with their notes and sources."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from textwrap import wrap
from typing import Any

from visual_r1.report.beside import beside
from visual_r1.report.columns import aligned
from visual_r1.report.published import PublishedRow, published
from visual_r1.statistics import Interval

_WIDTH = 110
_HOW = "differences: this run's `reference` accuracy minus the row's; unpaired, 95 % over items, not seeds"


def published_table(benchmark: str) -> str:
    """All published rows on a benchmark with intervals, sources, and every note in full.

    Raises:
        ValueError: nothing is published on that benchmark.
    """
    rows = published().on(benchmark)
    if not rows:
        known = ", ".join(published().benchmarks)
        raise ValueError(f"nothing is published on benchmark {benchmark!r}: choose from {known}")
    about = rows[0].benchmark
    numbers = note_numbers(benchmark)
    sources = dict(zip(dict.fromkeys(row.source for row in rows), ascii_lowercase, strict=False))
    models = {row.recipe.style: row.model for row in rows}
    items = ", ".join(f"{name} {count}" for name, count in about.categories.items())
    table = [
        ("", "total", *about.categories, "adds up to", "kind", "source", "notes"),
        *(
            (
                row.label,
                accuracy_text(row),
                *(str(row.categories.get(name, "-")) for name in about.categories),
                "-" if row.recomputed_total is None else f"{row.recomputed_total:.2f}{'' if row.adds_up else ' !'}",
                row.kind,
                sources[row.source],
                markers(row, numbers),
            )
            for row in rows
        ),
    ]
    lines = [
        f"{about.title}: {about.num_items:,} items" + (f" ({items})" if items else ""),
        about.source,
        f"accuracy in %, as printed, scorer `{rows[0].scorer}`; [95 % Wilson interval over items]; ! does not add up",
        *(f"{style}: {model}" for style, model in models.items()),
        "",
        *aligned(table),
        "",
        *(line for text in about.notes.values() for line in wrap(text, _WIDTH)),
        "",
        *(
            line
            for text, number in numbers.items()
            for line in wrap(text, _WIDTH, initial_indent=f"{number:>2} ", subsequent_indent="   ")
        ),
        "",
        *(f" {letter} {source.where}, {source.date}, {source.url}" for source, letter in sources.items()),
    ]
    return "\n".join(lines)


def beside_lines(summary: Mapping[str, Any]) -> list[str]:
    """A run beside the published rows of its benchmark; no line where nothing is published on it.

    Rows that the run repeats are marked, and shown by category where they can be compared.
    """
    compared = beside(summary)
    if compared is None:
        return []
    name = compared.benchmark.name
    numbers = note_numbers(name)
    wording = summary.get("prompt")
    is_marked = any(one.is_counterpart for one in compared.rows)
    has_start = any(when == "before" for _, when in compared.measured)
    table = [("", "accuracy", "this run minus it", "notes")]
    for (scorer, when), accuracy in compared.measured.items():
        table.append((f"  this run{f' {when}' if has_start else ''}, {scorer}", _percent(accuracy), "", ""))
    for one in compared.rows:
        row = one.row
        label = row.label if row.kind == "paper" else f"{row.label} ({row.kind})"
        mark = ">" if one.is_counterpart else " "
        difference = _points(one.difference) + (" before" if one.when == "before" else "")
        table.append((f"{mark} {label}", accuracy_text(row), difference, markers(row, numbers)))
        if one.is_counterpart:
            table += [
                (f"    {category}", accuracy_text(row, category), _points(difference), "")
                for category, difference in one.by_category.items()
            ]
    return [
        f"Published on {compared.benchmark.title}, in %" + ("; > is what this run repeats" if is_marked else ""),
        *aligned(table),
        f"No difference, because {compared.reason}" if compared.reason else _HOW,
        *(
            [f"asked in the {wording} wording; the rows are of model.prompt=paper"]
            if wording not in (None, "paper")
            else []
        ),
        f"notes and sources: visual-r1 published --benchmark {name}",
    ]


def _percent(accuracy: Interval) -> str:
    return f"{100 * accuracy.estimate:.2f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _points(difference: Interval | None) -> str:
    """A difference of shares in points: ``+0.6 [-2.0, 3.3]``."""
    if difference is None:
        return ""
    return f"{100 * difference.estimate:+.1f} [{100 * difference.low:.1f}, {100 * difference.high:.1f}]"


def accuracy_text(row: PublishedRow, category: str | None = None) -> str:
    """A printed accuracy with its interval: ``59.47 [57.6, 61.3]``."""
    interval = row.interval(category)
    printed = row.total if category is None else row.categories[category]
    return f"{printed} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def note_numbers(benchmark: str) -> dict[str, int]:
    """Text to number of everything that the rows on a benchmark have to be read with, discrepancies first."""
    texts = (text for row in published().on(benchmark) for text in _texts(row))
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}


def markers(row: PublishedRow, numbers: dict[str, int]) -> str:
    """The numbers of a row's notes: ``1, 2``."""
    return ", ".join(str(numbers[text]) for text in _texts(row))


def _texts(row: PublishedRow) -> tuple[str, ...]:
    return (*(f"{text[0].upper()}{text[1:]}." for text in row.discrepancies), *row.notes.values())
