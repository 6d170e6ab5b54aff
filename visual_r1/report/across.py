"""A report across runs: everything that HTML, Markdown and CSV show, found once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visual_r1.examples import Example
from visual_r1.report.cautions import Caution, cautions
from visual_r1.report.comparisons import Comparison, compare
from visual_r1.report.config_diff import differing
from visual_r1.report.curves import (
    Chart,
    Entry,
    by_keyword_list,
    charts_for,
    curve_over_seeds,
    entries_of,
)
from visual_r1.report.groups import Group, Results, groups_of, results_of_group, results_of_run
from visual_r1.report.rollouts import Browsed, Sampled, browse, read_sampled
from visual_r1.report.runs import LeftOut, Run, RunSet, read_runs
from visual_r1.report.tables import (
    Table,
    accuracy_table,
    behaviour_table,
    category_tables,
    comparison_table,
    published_tables,
    reflection_summary,
    reflection_tables,
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What some runs show."""

    runs: RunSet
    groups: tuple[Group, ...]
    by_group: tuple[Results, ...]
    by_run: tuple[Results, ...]
    comparisons: tuple[Comparison, ...]
    cautions: tuple[Caution, ...]
    left_out: tuple[LeftOut, ...]
    differences: Mapping[str, tuple[str, ...]]
    """Dotted key of the configuration to its value in each run, of keys that are not everywhere the same."""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group.benchmark for group in self.groups))

    def main_tables(self) -> list[Table]:
        """Accuracy, behaviour and cost over seeds, and the paired differences."""
        tables = []
        for benchmark in self.benchmarks:
            results = [one for one in self.by_group if one.benchmark == benchmark]
            title = f"Accuracy on {benchmark}, over seeds"
            tables.append(accuracy_table(results, title=title))
            tables.append(behaviour_table(results, title=f"Length, reflection and cost on {benchmark}, over seeds"))
        if self.comparisons:
            tables.append(comparison_table(self.comparisons))
        return tables

    def detail_tables(self) -> list[Table]:
        """By category and scorer, beside the published rows, and run by run."""
        tables = []
        for benchmark in self.benchmarks:
            groups = [one for one in self.by_group if one.benchmark == benchmark]
            runs = [one for one in self.by_run if one.benchmark == benchmark]
            tables += category_tables(groups, title=f"Accuracy by category on {benchmark}")
            tables.append(accuracy_table(runs, title=f"Accuracy on {benchmark}, run by run"))
            tables.append(behaviour_table(runs, title=f"Length, reflection and cost on {benchmark}, run by run"))
            tables += category_tables(runs, title=f"Accuracy by category on {benchmark}, run by run")
        return tables + published_tables(self.groups, self.by_group)

    def reflection_summary(self) -> Table | None:
        """What the causal measures come to, of the runs that have them."""
        return reflection_summary(self.runs.runs)

    def reflection_tables(self) -> list[Table]:
        """All causal measures, of the runs that have them."""
        return reflection_tables(self.runs.runs)[0]


def findings(paths: Sequence[Path]) -> Findings:
    """Reads runs and compares them.

    Raises:
        ValueError: there is no run at any of the paths.
    """
    runs = read_runs(paths)
    groups = groups_of(runs.finished)
    by_group = tuple(results_of_group(group) for group in groups)
    by_run = tuple(results_of_run(run) for group in groups for run in group.runs)
    comparisons, not_compared = compare(groups)
    _, not_causal = reflection_tables(runs.runs)
    return Findings(
        runs=runs,
        groups=groups,
        by_group=by_group,
        by_run=by_run,
        comparisons=comparisons,
        cautions=cautions(runs.runs, by_group, comparisons),
        left_out=(*runs.left_out, *not_compared, *not_causal),
        differences=differing([run.config for run in runs.runs]),
    )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Curves and rollouts: what only a page can show."""

    entries: tuple[Entry, ...]
    charts: tuple[Chart, ...]
    curves: Mapping[str, list[dict[str, Any] | None]]
    """Key to a curve of each entry."""
    browsed: Browsed
    left_out: tuple[LeftOut, ...]


def drawn(
    found: Findings,
    *,
    keyword_lists: Mapping[str, Sequence[str]],
    examples_of: Callable[[Mapping[str, Any]], Sequence[Example]],
) -> Drawn:
    """The curves over seeds and the rollouts of some runs.

    Args:
        found: the runs.
        keyword_lists: by name, the lists that reflection is also counted by, on the rollouts that are on record.
        examples_of: as in `browse`.
    """
    runs = found.runs.runs
    left_out: list[LeftOut] = []
    sampled: dict[Path, list[Sampled]] = {}
    for run in runs:
        sampled[run.folder.path], missing = read_sampled(run)
        left_out += missing
        if not sampled[run.folder.path]:
            left_out.append(LeftOut(where=str(run.folder.path), what="its rollouts", why="completions/ has none"))
    derived = {run.folder.path: by_keyword_list(sampled[run.folder.path], keyword_lists) for run in runs}
    entries = entries_of(found.groups, found.runs.unfinished)
    charts = charts_for(runs, keyword_lists)
    curves: dict[str, list[dict[str, Any] | None]] = {}
    for key, (is_share, is_of_all) in _keys(charts).items():
        curves[key] = [
            curve_over_seeds(
                [derived[run.folder.path].get(key) or _line(run, key) for run in entry.runs],
                is_share=is_share,
                num_items=_num_probed(sampled[entry.runs[0].folder.path], key)
                if is_of_all and key.startswith("probe/")
                else None,
            )
            for entry in entries
        ]
    browsed = browse([(run, sampled[run.folder.path]) for run in runs], examples_of=examples_of)
    return Drawn(
        entries=entries,
        charts=charts,
        curves={key: lines for key, lines in curves.items() if any(lines)},
        browsed=browsed,
        left_out=(*left_out, *browsed.left_out),
    )


def _keys(charts: Sequence[Chart]) -> dict[str, tuple[bool, bool]]:
    """Keys of all curves: whether it is a share, and one of all completions."""
    keys = {
        key: chart.unit == "%"
        for chart in charts
        for choice in chart.choices
        for line in choice.lines
        for key in (line.probe, line.train)
        if key is not None
    }
    # A share of the right or of the wrong ones alone: how many these were is not on record. What of each
    # completion is repeated is a mean, no count of completions.
    no_count = re.compile(r"correct$|repeated_rate$")
    return {key: (is_share, is_share and not no_count.search(key)) for key, is_share in keys.items()}


def _line(run: Run, key: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[key])) for row in run.rows if key in row]


def _num_probed(sampled: Sequence[Sampled], key: str) -> int | None:
    """The examples behind a curve of the probe: all of them, or those of the category that it is about."""
    prefix = "probe/accuracy/"
    category = key.removeprefix(prefix) if key.startswith(prefix) else None
    counts = [
        len({row["example_id"] for row in step.of("probe") if category in (None, row.get("category"))})
        for step in sampled
    ]
    return next((count for count in counts if count), None)
