"""Published results: what a run can be set beside, and where a source's own numbers do not add up.

The rows lie in ``published.yaml`` as their sources print them. A percentage of a known number of items stands for a
number of right answers; from those numbers come the intervals, the totals and the discrepancies here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import product
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from visual_r1.statistics import Interval, wilson

_DATA = Path(__file__).with_name("published.yaml")
_KINDS = ("paper", "follow-up", "reproduction")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The runs that a row is the counterpart of, in the words of the config groups."""

    style: str
    methods: tuple[str, ...]
    """Empty where nothing here does what was done there."""
    freeze: str
    adapter: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a row was read, and of which day that text is (year-month-day)."""

    where: str
    url: str
    date: str


@dataclass(frozen=True, kw_only=True)
class PublishedBenchmark:
    """What was scored: the items of each category, and what every row on it needs to be read with."""

    name: str
    title: str
    categories: Mapping[str, int]
    """Number of items of each; empty where no source has accuracy by category."""
    num_items: int
    source: str
    notes: Mapping[str, str]
    """Name to text; several rows may share a note."""

    def __post_init__(self) -> None:
        if self.categories and sum(self.categories.values()) != self.num_items:
            raise ValueError(f"its categories have {sum(self.categories.values())} items, not {self.num_items}")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One model on one benchmark, as published."""

    key: str
    label: str
    kind: str
    """``paper`` (the authors' own), ``follow-up`` (the same task by others) or ``reproduction`` (a user's report)."""
    model: str
    training: str
    recipe: Recipe
    benchmark: PublishedBenchmark
    scorer: str
    """The rule that produced the numbers, as the scorers here are called."""
    categories: Mapping[str, Decimal]
    """Printed accuracy by category in per cent; empty where there is none."""
    total: Decimal
    """Printed accuracy over all items in per cent."""
    source: Source
    seeds: int | None
    """Training runs behind the number; None where nothing was trained."""
    notes: Mapping[str, str]

    def __post_init__(self) -> None:
        items = self.benchmark.categories
        if self.kind not in _KINDS:
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(_KINDS)}")
        if self.categories and set(self.categories) != set(items):
            raise ValueError(f"its categories are {sorted(self.categories)}, expected {sorted(items)}")
        if (self.seeds is None) != ("eval" in self.recipe.methods):
            raise ValueError(f"seeds is {self.seeds}; it is null for a model that nobody trained, and only there")
        printed = {"total": (self.total, self.benchmark.num_items)}
        printed |= {name: (value, items[name]) for name, value in self.categories.items()}
        for name, (value, num_items) in printed.items():
            if not counts_printed_as(value, num_items):
                raise ValueError(f"{name}: no number of right answers of {num_items} is printed as {value} %")

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """The numbers of right answers that each printed category may stand for, smallest first."""
        items = self.benchmark.categories
        return {name: counts_printed_as(value, items[name]) for name, value in self.categories.items()}

    @property
    def total_counts(self) -> tuple[int, ...]:
        """The numbers of right answers that the printed total may stand for."""
        return counts_printed_as(self.total, self.benchmark.num_items)

    @property
    def summed_counts(self) -> tuple[int, ...]:
        """The numbers of right answers that the categories may add up to; empty where there are no categories."""
        return tuple(sorted({sum(counts) for counts in product(*self.counts.values())})) if self.categories else ()

    @property
    def recomputed_total(self) -> float | None:
        """Per cent of all items that the categories add up to; None where there are no categories."""
        return 100 * fmean(self.summed_counts) / self.benchmark.num_items if self.categories else None

    @property
    def adds_up(self) -> bool:
        """Whether the categories can give the printed total; True where there are none."""
        return not self.categories or bool(set(self.summed_counts) & set(self.total_counts))

    @property
    def discrepancies(self) -> tuple[str, ...]:
        """What the printed numbers contradict each other in, beyond what cutting decimals off or rounding can do."""
        if self.adds_up:
            return ()
        printed, summed, items = self.total_counts[0], self.summed_counts[0], self.benchmark.num_items
        return (
            f"the printed total {self.total} is {printed:,} of {items:,} items; the categories add up to {summed:,}, "
            f"which is {self.recomputed_total:.2f}",
        )

    def interval(self, category: str | None = None, *, level: float = 0.95) -> Interval:
        """Wilson's interval around the printed accuracy, over items, as shares.

        Where several numbers of right answers fit, because of few decimals or because categories and total disagree,
        it reaches from the lowest number's lower end to the highest number's upper end.
        """
        if category is None:
            counts = self.total_counts if self.adds_up else (*self.total_counts, *self.summed_counts)
            printed, num_items = self.total, self.benchmark.num_items
        else:
            counts = self.counts[category]
            printed, num_items = self.categories[category], self.benchmark.categories[category]
        ends = [wilson(count, num_items, level) for count in counts]
        estimate = ends[0].estimate if len(counts) == 1 else float(printed) / 100
        return Interval(estimate, min(end.low for end in ends), max(end.high for end in ends))


@dataclass(frozen=True, kw_only=True)
class Published:
    """All published rows."""

    rows: tuple[PublishedRow, ...]
    benchmarks: Mapping[str, PublishedBenchmark]

    def on(self, benchmark: str) -> tuple[PublishedRow, ...]:
        """The rows on a benchmark, the paper's first; none where nothing is published."""
        rows = (row for row in self.rows if row.benchmark.name == benchmark)
        return tuple(sorted(rows, key=lambda row: _KINDS.index(row.kind)))

    def counterparts(
        self, benchmark: str, *, model: str, style: str, method: str, freeze: str = "nothing", adapter: str = "none"
    ) -> tuple[PublishedRow, ...]:
        """The rows whose model and training a run repeats.

        Args:
            benchmark: Its name.
            model: Where the run started from, a hub id or a folder; a folder counts by its own name, Qwen2-VL-2B.
            style: How the model is talked to, base or instruct.
            method: The run's method; ``eval`` for a model as it was downloaded.
            freeze: What is not trained.
            adapter: none or lora.
        """
        return tuple(
            row
            for row in self.on(benchmark)
            if row.model.rpartition("/")[2] == model.rstrip("/").rpartition("/")[2]
            and method in row.recipe.methods
            and (row.recipe.style, row.recipe.freeze, row.recipe.adapter) == (style, freeze, adapter)
        )


def counts_printed_as(percent: Decimal, num_items: int) -> tuple[int, ...]:
    """The numbers k of right answers for which ``100 k / num_items`` is printed as `percent`, smallest first.

    Decimals may have been cut off or rounded: sources do either, some both in one table. Empty if no number fits.
    """
    exponent = percent.as_tuple().exponent
    unit = Fraction(10) ** int(exponent)
    printed = Fraction(percent)
    lowest = ceil((printed - unit / 2) * num_items / 100)
    beyond = ceil((printed + unit) * num_items / 100)
    return tuple(range(max(lowest, 0), min(beyond, num_items + 1)))


@cache
def published() -> Published:
    """The rows that ship with the project."""
    return load_published(_DATA)


def load_published(path: Path) -> Published:
    """Reads and checks a file of published rows.

    Raises:
        ValueError: an entry lacks a field or has one too many, names what is not there, or prints a percentage that no
            number of right answers gives. The message names file and entry.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    notes = data["notes"]
    sources: dict[str, Source] = {}
    benchmarks: dict[str, PublishedBenchmark] = {}
    rows: dict[str, PublishedRow] = {}
    fields: dict[str, Any]
    where = ""
    try:
        for name, entry in data["sources"].items():
            where = f"source {name}"
            sources[name] = Source(**entry)
        for name, entry in data["benchmarks"].items():
            where = f"benchmark {name}"
            fields = {**entry, "name": name, "notes": {name: notes[name] for name in entry["notes"]}}
            benchmarks[name] = PublishedBenchmark(**fields)
        for entry in data["rows"]:
            where = f"row {entry['key']}"
            if entry["key"] in rows:
                raise ValueError("is there twice")
            rows[entry["key"]] = _row(entry, benchmarks=benchmarks, sources=sources, notes=notes)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is not there" if isinstance(error, KeyError) else error
        raise ValueError(f"{path.name}, {where}: {reason}") from error
    return Published(rows=tuple(rows.values()), benchmarks=benchmarks)


def _row(
    entry: Mapping[str, Any],
    *,
    benchmarks: Mapping[str, PublishedBenchmark],
    sources: Mapping[str, Source],
    notes: Mapping[str, str],
) -> PublishedRow:
    recipe: dict[str, Any] = {**entry["recipe"], "methods": tuple(entry["recipe"]["methods"])}
    fields: dict[str, Any] = {
        **entry,
        "recipe": Recipe(**recipe),
        "benchmark": benchmarks[entry["benchmark"]],
        "source": sources[entry["source"]],
        "categories": {name: _percent(value) for name, value in entry["categories"].items()},
        "total": _percent(entry["total"]),
        "notes": {name: notes[name] for name in entry["notes"]},
    }
    return PublishedRow(**fields)


def _percent(value: Any) -> Decimal:
    # As a number of YAML's, 55.00 would lose its zeros, and with them how exact it is.
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)?", value) or not 0 <= Decimal(value) <= 100:
        raise ValueError(f'{value!r} is no percentage; write it as printed and in quotes, such as "55.00"')
    return Decimal(value)
