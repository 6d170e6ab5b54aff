"""Run folders as a report needs them: whatever can be read is, and whatever cannot is named with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from visual_r1.files import read_json, read_jsonl
from visual_r1.run_folder import RunFolder

_OUTSIDE = frozenset(("name", "seed", "runs_dir", "tracker"))
"""What of a configuration two seeds of one experiment may differ in."""

_UNREADABLE = (ValueError, OSError, yaml.YAMLError)
"""What the readers of YAML, JSON and parquet raise on a file that is damaged or not theirs."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something that the report does not show, and why."""

    where: str
    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Items:
    """A benchmark's items as one policy answered them, in the file's order."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    correct: Mapping[str, np.ndarray]
    """Right or not, by scorer; ``strict`` is always there."""

    def of(self, category: str | None) -> np.ndarray:
        """Indices of a category's items; all for None."""
        if category is None:
            return np.arange(len(self.ids))
        return np.flatnonzero(np.asarray(self.categories) == category)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, as far as it came."""

    folder: RunFolder
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Empty for a run that did not finish."""
    items: Mapping[str, Items] = field(default_factory=dict)
    """By moment, ``before`` and ``after``; empty where there is no readable file."""
    rows: Sequence[Mapping[str, Any]] = ()
    """The rows of ``metrics.jsonl``; a value that is no number is left out of its row."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reflection: Mapping[str, Any] = field(default_factory=dict)
    """The contents of ``reflection.json``; empty where it was not measured."""

    @property
    def name(self) -> str:
        return self.folder.path.resolve().parent.name

    @property
    def seed(self) -> Any:
        return self.config.get("seed", "-")

    @property
    def label(self) -> str:
        """What a reader calls the run: ``base-grpo seed 0``."""
        return f"{self.name} seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        return bool(self.summary)

    @property
    def benchmark(self) -> str:
        return str(self.summary.get("benchmark") or self.part("benchmark").get("name") or "-")

    @cached_property
    def recipe(self) -> str:
        """The same text for two runs that differ in nothing but their seed."""
        kept = {key: value for key, value in self.config.items() if key not in _OUTSIDE}
        return yaml.safe_dump(kept, sort_keys=True)

    @property
    def last_step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def moments(self) -> tuple[str, ...]:
        """``before`` and ``after`` its training; only ``after`` where nothing was trained."""
        return ("before", "after") if self.summary.get("accuracy_before") is not None else ("after",)

    def part(self, group: str) -> Mapping[str, Any]:
        """A group of the configuration; empty where an older version had none."""
        node = self.config.get(group)
        return node if isinstance(node, Mapping) else {}

    def total(self, key: str) -> float | None:
        """A curve's sum over the run; None where it has none."""
        values = [row[key] for row in self.rows if key in row]
        return float(sum(values)) if values else None

    def last(self, key: str) -> float | None:
        """A curve's last value; None where it has none."""
        return next((float(row[key]) for row in reversed(self.rows) if key in row), None)

    @property
    def seconds(self) -> float | None:
        """Wall time of the command, evaluation included; of a resumed run the steps', since its clock began anew."""
        if self.summary.get("is_resumed"):
            return self.total("step_time")
        wall = self.summary.get("wall_seconds")
        return None if wall is None else float(wall)


@dataclass(frozen=True, kw_only=True)
class RunSet:
    """All that was asked for: what could be read, and what not."""

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.is_finished)

    @property
    def unfinished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if not run.is_finished)


def read_runs(paths: Sequence[Path]) -> RunSet:
    """Reads run folders, or folders that hold some: ``runs/NAME/seed0``, ``runs/NAME``, ``runs``.

    Raises:
        ValueError: there is no run at any of the paths.
    """
    folders, left_out = _find(paths)
    if not folders:
        raise ValueError("; ".join(f"{one.where}: {one.why}" for one in left_out) or "no run folder was given")
    runs: list[Run] = []
    for folder in folders:
        run, missing = _read(folder)
        left_out += missing
        if run is None:
            continue
        twin = next((one for one in runs if (one.recipe, one.seed) == (run.recipe, run.seed)), None)
        if twin is not None and run.is_finished and twin.is_finished:
            why = f"the same configuration and seed as {twin.folder.path}: one run, which counts once"
            left_out.append(LeftOut(where=str(folder.path), what="the run", why=why))
            continue
        runs.append(run)
    if not runs:
        raise ValueError("; ".join(f"{one.where}: {one.why}" for one in left_out))
    return RunSet(runs=tuple(runs), left_out=tuple(left_out))


def _find(paths: Iterable[Path]) -> tuple[list[RunFolder], list[LeftOut]]:
    found: dict[Path, RunFolder] = {}
    left_out = []
    for path in paths:
        if not path.exists():
            left_out.append(LeftOut(where=str(path), what="the run", why="there is no such folder"))
            continue
        inside = [path, *sorted(path.glob("seed*")), *sorted(path.glob("*/seed*"))] if path.is_dir() else []
        here = [one for one in inside if (one / "config.yaml").is_file()]
        if not here:
            why = "not a run: it has no config.yaml, and neither has a seed folder in it"
            left_out.append(LeftOut(where=str(path), what="the run", why=why))
        for one in here[:1] if here[:1] == [path] else here:
            found.setdefault(one.resolve(), RunFolder(one))
    return list(found.values()), left_out


def _read(folder: RunFolder) -> tuple[Run | None, list[LeftOut]]:
    left_out: list[LeftOut] = []

    def leave(what: str, why: str) -> None:
        left_out.append(LeftOut(where=str(folder.path), what=what, why=why))

    def mapping(path: Path) -> dict[str, Any]:
        try:
            value = read_json(path) if path.exists() else {}
        except _UNREADABLE as error:
            leave(path.name, _in_short(error))
            return {}
        if not isinstance(value, dict):
            leave(path.name, f"holds {type(value).__name__}, not the mapping that was expected")
            return {}
        return value

    try:
        config = folder.read_config()
    except _UNREADABLE as error:
        leave("the run", f"its config.yaml cannot be read: {_in_short(error)}")
        return None, left_out
    if not isinstance(config, dict):
        leave("the run", "its config.yaml is no mapping, so this is not a run")
        return None, left_out
    summary = mapping(folder.summary)
    run = Run(
        folder=folder,
        config=config,
        summary=summary,
        items=_read_items(folder.evaluation_items, leave) if summary else {},
        rows=_read_rows(folder.metrics, leave),
        provenance=mapping(folder.provenance),
        reflection=mapping(folder.path / "reflection.json"),
    )
    if not run.is_finished:
        steps = run.part("scale").get("max_steps")
        came = f"it came to step {run.last_step}" + (f" of {steps}" if steps else "") if run.rows else "it has no step"
        leave("its place in tables and averages", f"unfinished or killed ({came}); its curves are shown on their own")
    elif missing := [key for key in ("scorers", "style", "model", "method") if key not in summary]:
        leave(", ".join(missing), "the run is from an older version, whose summary.json does not have them")
    return run, left_out


def _read_rows(path: Path, leave: Any) -> list[dict[str, Any]]:
    if not path.exists():
        leave("its curves", "there is no metrics.jsonl")
        return []
    try:
        rows = read_jsonl(path)
    except _UNREADABLE as error:
        leave("its curves", _in_short(error))
        return []
    if not rows:
        leave("its curves", "metrics.jsonl holds no whole row")
    good: list[dict[str, Any]] = []
    gaps: dict[str, list[int]] = {}
    for row in rows:
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int):
            leave("a row of metrics.jsonl", "it has no step")
            continue
        numbers = {key: value for key, value in row.items() if _is_number(value)}
        for key in row.keys() - numbers.keys():
            gaps.setdefault(key, []).append(step)
        good.append(numbers)
    for key, steps in sorted(gaps.items()):
        shown = ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")
        leave(f"{key} at step {shown}", f"no number (NaN, infinite or null) in {len(steps)} of {len(rows)} rows: a gap")
    return good


def _read_items(path: Path, leave: Any) -> dict[str, Items]:
    import pyarrow.parquet

    if not path.exists():
        leave("its items", "there is no evaluation.parquet, so nothing of it can be paired")
        return {}
    try:
        table = pyarrow.parquet.read_table(path)
        columns = {name: table.column(name).to_pylist() for name in table.schema.names if _is_needed(name)}
        whens = columns.get("when", ["after"] * table.num_rows)
        return {
            when: _items(columns, [index for index, one in enumerate(whens) if one == when])
            for when in dict.fromkeys(whens)
        }
    except (*_UNREADABLE, KeyError) as error:
        leave("its items", f"evaluation.parquet cannot be read: {_in_short(error)}")
        return {}


def _items(columns: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> Items:
    scorers = {name.removeprefix("correct").removeprefix("_") or "strict": name for name in columns}
    scorers = {scorer: name for scorer, name in scorers.items() if name.startswith("correct")}
    return Items(
        ids=tuple(str(columns["example_id"][index]) for index in indices),
        categories=tuple(str(columns["category"][index]) for index in indices),
        correct={
            scorer: np.array([bool(columns[name][index]) for index in indices]) for scorer, name in scorers.items()
        },
    )


def _is_needed(name: str) -> bool:
    return name in ("when", "example_id", "category", "correct") or name.startswith("correct_")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
