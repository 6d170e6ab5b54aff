"""Published rows as text, with their notes and sources."""

from __future__ import annotations

from string import ascii_lowercase
from textwrap import wrap

from visual_r1.report.columns import aligned
from visual_r1.report.published import PublishedRow, published

_WIDTH = 110


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
