"""The report as CSV: one number a row, with all that says what it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from visual_r1.report.across import Findings
from visual_r1.report.groups import Results
from visual_r1.report.published import published

COLUMNS = (
    *("kind", "name", "against", "seeds", "benchmark", "when", "scorer", "category"),
    *("measure", "value", "low", "high", "unit", "num_items", "p", "note"),
)


def as_csv(found: Findings) -> str:
    """All numbers of a report, for a spreadsheet or a data frame.

    ``kind`` is ``run``, ``group``, ``difference``, ``published``, ``warning`` or ``left out``; the text of the last two
    stands in ``note``. Shares and differences are in [-1, 1]; ``low`` and ``high`` are the ends of 95 % intervals;
    ``inf`` is the end of a price that has no bound.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in _rows(found):
        writer.writerow({key: _inert(value) for key, value in row.items()})
    return text.getvalue()


def _rows(found: Findings) -> Iterator[dict[str, object]]:
    for results in (*found.by_run, *found.by_group):
        yield from _measured(results)
    for one in found.comparisons:
        yield {
            "kind": "difference",
            "name": one.one,
            "against": one.other,
            "seeds": " and ".join("untrained" if count is None else str(count) for count in one.num_seeds),
            "benchmark": one.benchmark,
            "when": "after",
            "scorer": "strict",
            "measure": "accuracy",
            "value": one.difference.estimate,
            "low": one.difference.low,
            "high": one.difference.high,
            "unit": "difference",
            "num_items": one.num_items,
            "p": "" if one.adjusted_p is None else one.adjusted_p,
            "note": one.verdict,
        }
    for benchmark in found.benchmarks:
        for row in published().on(benchmark):
            for category in (None, *row.categories):
                interval = row.interval(category)
                yield {
                    "kind": "published",
                    "name": row.label,
                    "seeds": row.seeds or "",
                    "benchmark": benchmark,
                    "scorer": row.scorer,
                    "category": category or "",
                    "measure": "accuracy",
                    "value": float(row.total if category is None else row.categories[category]) / 100,
                    "low": interval.low,
                    "high": interval.high,
                    "unit": "share",
                    "num_items": row.benchmark.categories[category] if category else row.benchmark.num_items,
                    "note": row.source.url,
                }
    for caution in found.cautions:
        yield {"kind": "warning", "name": caution.where, "measure": caution.about, "note": caution.text}
    for left in found.left_out:
        yield {"kind": "left out", "name": left.where, "measure": left.what, "note": left.why}


def _measured(results: Results) -> Iterator[dict[str, object]]:
    for fact in results.facts:
        yield {
            "kind": "group" if results.is_group else "run",
            "name": results.label,
            "seeds": " ".join(map(str, results.seeds)),
            "benchmark": results.benchmark,
            "when": fact.when,
            "scorer": fact.scorer,
            "category": fact.category,
            "measure": fact.measure,
            "value": fact.value,
            "low": "" if fact.low is None else fact.low,
            "high": "" if fact.high is None else fact.high,
            "unit": fact.unit,
            "num_items": "" if fact.num_items is None else fact.num_items,
        }


def _inert(value: object) -> object:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
