"""The report's tables, as HTML and Markdown both show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import Any

from visual_r1.report.beside import beside, unpaired_difference
from visual_r1.report.comparisons import Comparison
from visual_r1.report.groups import Fact, Group, Results
from visual_r1.report.published import published
from visual_r1.report.published_table import accuracy_text
from visual_r1.report.runs import LeftOut, Run
from visual_r1.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A result on a line from 0 to 1, for the eye; the numbers stand beside it."""

    after: Fact
    before: Fact | None
    chance: float | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in a place of a table."""

    text: str
    below: str = ""
    """Smaller: an interval, a unit, a remark."""
    scale: Scale | None = None
    tone: str = ""
    """``good``, ``bad`` or ``quiet``; never the only bearer of a meaning."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its caption; the first cell of a row names it."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


_NO_SEEDS = (
    "The interval of a published row is over items alone: no paper gives what other seeds would have given, so a "
    "difference to it is less sure than its interval says."
)
_ELSEWHERE = "Other keyword lists and single steps are in reflection.json of each run."

_REFLECTING = "whole thought that reflects"
_UNREFLECTING = "whole thought that does not reflect"
_IN_SHORT = (
    ("reflects, %", "reflection_rate", "all completions", None),
    ("effect within a question", "effect_within_prompt", "reflects", "does not reflect"),
    ("cut off, it costs", "accuracy", _REFLECTING, "cut before the first reflection"),
    ("put in, it adds", "accuracy", "reflection put in at its end", _UNREFLECTING),
    ("empty, it adds", "accuracy", "empty reflection put in at its end", _UNREFLECTING),
    ("half the thought costs", "accuracy", "whole thought", "after 50 % of the thought"),
    ("another image costs", "accuracy", "whole thought", "image of another item"),
)
"""A column's head, and the measure, the condition and what is subtracted of the rows that it shows."""

NOTHING = Cell(text="–", tone="quiet")


def accuracy_table(results: Sequence[Results], *, title: str) -> Table:
    """Accuracy with everything without which it means nothing, the published rows of the benchmark below.

    Args:
        results: of one benchmark.
        title: the caption.
    """
    rows: list[tuple[Cell, ...]] = [
        (
            _name(one),
            _glyph(one),
            _share(one.get("accuracy", when="before")),
            _share(one.get("accuracy")),
            _points(one.get("gain")),
            _plain_share(one.get("chance")),
            _plain_share(one.get("majority")),
            _share(one.get("blank_accuracy")),
            _plain_share(one.get("parse_rate")),
            _plain_share(one.get("truncated_rate")),
        )
        for one in results
    ]
    header = ("", "0 to 100 %", "before", "after", "gain, points", "chance", "majority", "blank images", "read", "cut")
    note = (
        "Strict scorer, on the same items before and after, in %; below each number its 95 % interval, over seeds and "
        "items where there are seeds, else over items. Gain: paired by item. Read: answers that could be read; cut: at "
        "the length limit. The line: hollow before, filled after, with the interval; the tick is chance."
    )
    blank = [NOTHING] * (len(header) - 4)
    rows_of_papers = published().on(results[0].benchmark) if results else ()
    if rows_of_papers:
        note += f" Published rows are by the paper's own scoring rule, which is not the strict one. {_NO_SEEDS}"
    for row in rows_of_papers:
        label = row.label if row.kind == "paper" else f"{row.label} ({row.kind})"
        printed, _, ends = accuracy_text(row).partition(" ")
        name = Cell(text=label, below=f"published, {row.source.date}", tone="quiet")
        rows.append((name, NOTHING, NOTHING, Cell(text=printed, below=ends), *blank))
    return Table(title=title, note=note, header=header, rows=tuple(rows))


def behaviour_table(results: Sequence[Results], *, title: str) -> Table:
    """Length, reflection, time, tokens, and what a point of accuracy cost."""
    rows = tuple(
        (
            _name(one),
            _change(one, "length", _number),
            _change(one, "reflection", _plain_percent),
            _change(one, "probe_length", _number),
            _change(one, "probe_reflection", _plain_percent),
            _cost(one.get("steps"), _count),
            _cost(one.get("seconds"), _duration),
            _cost(one.get("tokens"), _count),
            _price(one, "seconds_per_point", _duration),
            _price(one, "tokens_per_point", _count),
        )
        for one in results
    )
    header = ("", "length", "reflection, %", "probe length", "probe reflection, %")
    header += ("steps", "time", "tokens", "time a point", "tokens a point")
    note = (
        "Before → after. Length in tokens, reflection as the share of completions with a phrase of the keyword list: "
        "on the benchmark, greedy, and on the probe, sampled. Time is of the whole command, tokens are those that the "
        "trainer has seen, prompts included. A point: one percentage point of accuracy gained; no price without a "
        "gain, and no bound on it where the gain's interval holds 0."
    )
    return Table(title=title, note=note, header=header, rows=rows)


def category_tables(results: Sequence[Results], *, title: str) -> list[Table]:
    """Accuracy by category, one table a scorer."""
    tables = []
    for scorer in dict.fromkeys(name for one in results for name in one.scorers):
        names = dict.fromkeys(name for one in results for name in one.categories)
        rows = []
        for one in results:
            cells = [_accuracy_and_gain(one, scorer, category) for category in (None, *names)]
            if any(cell is not NOTHING for cell in cells):
                rows.append((_name(one), *cells))
        for baseline in ("chance", "majority"):
            if results and (found := _baselines(results[0], baseline, scorer, names)):
                rows.append((Cell(text=baseline, tone="quiet"), *found))
        absent = [one.label for one in results if one.get("accuracy", scorer=scorer) is None]
        note = f"Accuracy after training by the scorer {scorer}, in %, and below it the interval and the paired gain."
        if absent:
            note += f" Not scored by it: {', '.join(absent)}."
        tables.append(Table(title=f"{title}, scorer {scorer}", note=note, header=("", "all", *names), rows=tuple(rows)))
    return tables


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Paired differences between groups."""
    rows = tuple(
        (
            Cell(text=f"{one.one} − {one.other}", below=one.benchmark),
            Cell(text=_signed(one.difference.estimate), below=_ends(one.difference, 100)),
            Cell(text=one.verdict, below=one.remark, tone="good" if one.is_resolved else "quiet"),
            Cell(
                text=f"{100 * one.smallest:.1f}",
                below="if seeds did not matter" if one.takes_seeds_as_equal else "",
            ),
            Cell(text=f"{one.num_items}"),
            Cell(text=" / ".join("untrained" if count is None else str(count) for count in one.num_seeds)),
            NOTHING if one.p is None else Cell(text=_p(one.p)),
            NOTHING if one.adjusted_p is None else Cell(text=_p(one.adjusted_p)),
        )
        for one in comparisons
    )
    header = ("", "difference, points", "verdict", "resolvable, points", "items", "seeds", "p", "p, Holm")
    note = (
        "Strict accuracy after training, paired by item, and by seed where each seed has a model of its own to start "
        "from. Resolved: an interval that holds for all comparisons of the "
        "benchmark together excludes 0, or, of single seeds, McNemar's exact p stays under 0.05 after Holm's "
        "correction. Resolvable: the smallest true difference that these items and seeds show four times in five."
    )
    return Table(title="Paired differences", note=note, header=header, rows=rows)


def published_tables(groups: Sequence[Group], results: Sequence[Results]) -> list[Table]:
    """Each group against the published rows of its benchmark, by the paper's own scoring rule."""
    tables = []
    for group, measured in zip(groups, results, strict=True):
        compared = beside(group.runs[0].summary)
        if compared is None:
            continue
        reference = measured.get("accuracy", scorer="reference")
        rows = []
        for one in compared.rows:
            if one.when == "before":
                continue
            row = one.row
            cell = NOTHING
            if not compared.reason and reference is not None and reference.low is not None:
                assert reference.high is not None
                ours = Interval(reference.value, reference.low, reference.high)
                minus = unpaired_difference(ours, row.interval())
                cell = Cell(text=_signed(minus.estimate), below=_ends(minus, 100))
            printed, _, ends = accuracy_text(row).partition(" ")
            name = Cell(text=row.label, below="what this run repeats" if one.is_counterpart else row.kind)
            categories = [
                Cell(text=str(row.categories[name])) if name in row.categories else NOTHING
                for name in compared.benchmark.categories
            ]
            rows.append((name, Cell(text=printed, below=ends), cell, *categories))
        tables.append(
            Table(
                title=f"{group.label} beside what is published on {compared.benchmark.title}",
                note=f"No difference, because {compared.reason}."
                if compared.reason
                else "This group's accuracy by the paper's own rule (scorer reference) minus the row, in points; "
                f"unpaired, since no answers by item were published. {_NO_SEEDS} `visual-r1 published` has notes and "
                "sources.",
                header=("", "published, %", "this group minus it", *compared.benchmark.categories),
                rows=tuple(rows),
            )
        )
    return tables


def reflection_summary(runs: Sequence[Run]) -> Table | None:
    """What the causal measures come to, a policy a row; None without a run that has them."""
    rows = []
    for run in runs:
        known = [row for part in _sections(run) for row in part["rows"] if _is_shown(run, row)]
        # What was sampled for the measures; what the run had saved if there is nothing else.
        known = [row for row in known if row.get("source") == "probe"] or known
        cells: dict[str, list[Cell]] = {}
        for number, (_, *wanted) in enumerate(_IN_SHORT):
            found = [row for row in known if [row.get(key) for key in ("measure", "condition", "against")] == wanted]
            for row in found:
                line = cells.setdefault(str(row.get("model") or ""), [NOTHING] * len(_IN_SHORT))
                line[number] = _estimate_of(row)
        rows += [(Cell(text=run.label, below=model), *line) for model, line in cells.items()]
    if not rows:
        return None
    note = (
        "In % and points, with 95 % intervals over items and their number. Effect within a question: how much more "
        "often completions are right that reflect. Cut off: the thought up to its first reflection, answered at once. "
        "Put in: words of doubt at the end of a thought that had none, and what the model makes of them; empty: words "
        "that confirm and end. Half the thought: the answer forced there. What a policy reflects on, it has chosen: "
        "after training few thoughts are left in which one can be put."
    )
    return Table(
        title="Reflection, in short", note=note, header=("", *(title for title, *_ in _IN_SHORT)), rows=tuple(rows)
    )


def reflection_tables(runs: Sequence[Run]) -> tuple[list[Table], list[LeftOut]]:
    """The causal measures of the runs that have them, one table a section; what cannot be read is left out."""
    sections: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    left_out = []
    for run in runs:
        for part in _sections(run):
            sections.setdefault(str(part.get("name")), []).append((run, part))
        lines = run.reflection.get("left_out")
        for line in lines if isinstance(lines, list) else ():
            left_out.append(LeftOut(where=run.label, what="of the causal measures", why=str(line)))
    tables = []
    for parts in sections.values():
        rows = tuple(_reflection_row(run, row) for run, part in parts for row in part["rows"] if _is_shown(run, row))
        first = parts[0][1]
        header = ("", "measure", "condition", "estimate", "at step 0", "n", "p")
        tables.append(
            Table(
                title=str(first.get("title", "")),
                note=f"{first.get('note', '')} {_ELSEWHERE}",
                header=header,
                rows=rows,
            )
        )
    return tables, left_out


def _sections(run: Run) -> list[Mapping[str, Any]]:
    parts = run.reflection.get("sections", ())
    parts = parts if isinstance(parts, list) else ()
    return [part for part in parts if isinstance(part, dict) and isinstance(part.get("rows"), list)]


def _is_shown(run: Run, row: Any) -> bool:
    """Rows of the run's own keyword list and of no single step; all lists and steps together are thousands."""
    return (
        isinstance(row, dict)
        and row.get("keywords") in (None, run.reflection.get("keywords"))
        and not str(row.get("model")).startswith("step ")
    )


def _reflection_row(run: Run, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    unit = row.get("unit")
    against = f" − {row['against']}" if row.get("against") else ""
    place = ", ".join(str(row[key]) for key in ("source", "keywords") if row.get(key))
    p = row.get("p")
    return (
        Cell(text=run.label, below=str(row.get("model") or "")),
        Cell(text=str(row.get("measure") or "")),
        Cell(text=f"{row.get('condition') or ''}{against}", below=place),
        _estimate(row.get("estimate"), row.get("interval"), unit),
        _estimate(row.get("baseline"), row.get("baseline_interval"), unit),
        Cell(text=str(row.get("n", "–")), below=str(row.get("n_counts") or "")),
        Cell(text=_p(p)) if isinstance(p, int | float) else NOTHING,
    )


def _estimate_of(row: Mapping[str, Any]) -> Cell:
    """As `_estimate`, with how many there were, and without the unit, which the column has."""
    cell = _estimate(row.get("estimate"), row.get("interval"), row.get("unit"))
    return (
        cell
        if cell is NOTHING
        else Cell(text=cell.text.split()[0], below=f"{cell.below}\nn {row.get('n', '–')}".strip())
    )


def _estimate(value: Any, ends: Any, unit: Any) -> Cell:
    if not isinstance(value, int | float):
        return NOTHING
    factor = 100 if unit in ("share", "difference") else 1
    text = _signed(value) if unit == "difference" else f"{factor * value:.1f}"
    has_ends = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    names = {"share": "%", "difference": "points", "per_1k_tokens": "per 1k tokens"}
    below = _ends(Interval(value, *ends), factor) if has_ends else ""
    return Cell(text=f"{text} {names.get(str(unit), str(unit or ''))}".strip(), below=below)


def _name(one: Results) -> Cell:
    if not one.is_group:
        return Cell(text=one.label)
    return Cell(text=one.label, below=f"seed{'s' if len(one.seeds) > 1 else ''} {', '.join(map(str, one.seeds))}")


def _glyph(one: Results) -> Cell:
    after, chance = one.get("accuracy"), one.get("chance")
    if after is None:
        return NOTHING
    scale = Scale(after=after, before=one.get("accuracy", when="before"), chance=chance.value if chance else None)
    return Cell(text="", scale=scale)


def _accuracy_and_gain(one: Results, scorer: str, category: str | None) -> Cell:
    cell = _share(one.get("accuracy", scorer=scorer, category=category))
    gain = one.get("gain", scorer=scorer, category=category)
    if cell is NOTHING or gain is None:
        return cell
    return replace(cell, below=f"{cell.below}\ngain {_signed(gain.value)} {_fact_ends(gain)}".strip())


def _baselines(one: Results, measure: str, scorer: str, categories: Iterable[str]) -> tuple[Cell, ...]:
    facts = [one.get(measure, scorer=scorer, category=category) for category in (None, *categories)]
    return tuple(_plain_share(fact) for fact in facts) if any(facts) else ()


def _share(fact: Fact | None) -> Cell:
    return NOTHING if fact is None else Cell(text=f"{100 * fact.value:.1f}", below=_fact_ends(fact))


def _plain_share(fact: Fact | None) -> Cell:
    return NOTHING if fact is None else Cell(text=f"{100 * fact.value:.1f}")


def _points(fact: Fact | None) -> Cell:
    if fact is None:
        return NOTHING
    tone = "good" if (fact.low or 0) > 0 else "bad" if fact.high is not None and fact.high < 0 else ""
    return Cell(text=_signed(fact.value), below=_fact_ends(fact), tone=tone)


def _change(one: Results, measure: str, show: Callable[[float], str]) -> Cell:
    before, after = one.get(measure, when="before"), one.get(measure)
    if after is None:
        return NOTHING
    return Cell(text=show(after.value) if before is None else f"{show(before.value)} → {show(after.value)}")


def _cost(fact: Fact | None, show: Callable[[float], str]) -> Cell:
    if fact is None:
        return NOTHING
    if fact.low is None or fact.high is None:
        return Cell(text=show(fact.value))
    high = "no bound" if isinf(fact.high) else show(fact.high)
    return Cell(text=show(fact.value), below=f"[{show(fact.low)}, {high}]")


def _price(one: Results, measure: str, show: Callable[[float], str]) -> Cell:
    """What a point of accuracy cost, or why it has no price."""
    if (fact := one.get(measure)) is not None:
        return _cost(fact, show)
    steps, gain = one.get("steps"), one.get("gain")
    if steps is not None and not steps.value:
        return replace(NOTHING, below="not trained")
    if gain is None:
        return replace(NOTHING, below="gain unknown")
    return replace(NOTHING, below="no gain" if gain.value <= 0 else "not on record")


def _fact_ends(fact: Fact) -> str:
    if fact.low is None or fact.high is None:
        return ""
    return _ends(Interval(fact.value, fact.low, fact.high), 100)


def _ends(interval: Interval, factor: float) -> str:
    return f"[{factor * interval.low:.1f}, {factor * interval.high:.1f}]".replace("-", "−")


def _signed(share: float) -> str:
    """In points, with a true minus sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _number(value: float) -> str:
    return f"{value:.1f}"


def _plain_percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(value: float) -> str:
    """Counts for a reader: 823 k, 1.2 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if unit == ' k' else size):.{0 if unit == ' k' else 1}f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
