"""Run folders as a report needs them: whatever can be read is, and whatever cannot is named with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import yaml

from visual_r1.files import read_json, read_jsonl
from visual_r1.run_folder import RunFolder

_OUTSIDE = frozenset(("name", "seed", "runs_dir", "tracker"))
"""What of a configuration two seeds of one experiment may differ in, beside the build that they start from."""

_ASKED = ("question", "choices", "solution")
_MEASURED = {
    "blank_accuracy": "blank_correct",
    "truncated_rate": "is_truncated",
    "well_formed_rate": "well_formed",
    "length": "num_tokens",
}
"""A measure and the column of ``evaluation.parquet`` that it is the mean of."""

_RECORDED: Mapping[str, type] = {
    **{"code": dict, "data": dict, "versions": dict, "hardware": dict},
    **{"command": list, "resumes": list},
}
"""What a ``provenance.json`` holds, as far as a report reads it."""

_SUMMARISED: Mapping[str, UnionType] = {
    **dict.fromkeys(("name", "model", "style", "prompt", "method", "freeze", "adapter"), str | None),
    **dict.fromkeys(("benchmark", "commit", "command", "keywords"), str | None),
    **dict.fromkeys(("steps", "wall_seconds", "num_items", "num_missing", "num_responses"), int | float | None),
    **dict.fromkeys(("chance", "majority"), int | float | None),
    **dict.fromkeys(("by_category", "scorers"), dict | None),
}
"""What a ``summary.json`` holds, as far as a report reads it, beside the measures before and after training."""

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
    asked: tuple[tuple[str, ...], ...] = ()
    """Of each item its id, category, question, choices and solution, as far as the file has them."""
    subsets: tuple[str | None, ...] = ()
    """The collections that the items are from; empty where the file does not say."""
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Other numbers of an item, by the name of the measure that is their mean: ``blank_accuracy``, ``length``."""

    def of(self, category: str | None) -> np.ndarray:
        """Indices of a category's items; all for None."""
        if category is None:
            return np.arange(len(self.ids))
        return np.flatnonzero(np.asarray(self.categories) == category)

    def in_order_of(self, other: Items) -> Items | None:
        """These items in the order in which the other has them; None where they are not the same."""
        if self.asked == other.asked:
            return self
        if sorted(self.asked) != sorted(other.asked):
            return None
        order = np.empty(len(self.asked), dtype=int)
        order[sorted(range(len(order)), key=other.asked.__getitem__)] = sorted(
            range(len(order)), key=self.asked.__getitem__
        )
        return Items(
            ids=_taken(self.ids, order),
            categories=_taken(self.categories, order),
            correct={scorer: values[order] for scorer, values in self.correct.items()},
            asked=_taken(self.asked, order),
            subsets=_taken(self.subsets, order) if self.subsets else (),
            measured={measure: values[order] for measure, values in self.measured.items()},
        )


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

    @property
    def start(self) -> str:
        """The model that the run started from."""
        return str(self.part("model").get("path"))

    @property
    def build(self) -> str | None:
        """Which of a scale's builds of its models the run started from, one recipe from several seeds; else None."""
        return None if self._checkpoint is None else str(self.part("scale").get("organism_seed"))

    @property
    def _checkpoint(self) -> str | None:
        """What the scale calls the model that the run started from; None where it is not one of several builds."""
        checkpoints = self.part("scale").get("checkpoints")
        if self.part("scale").get("organism_seed") is None or not isinstance(checkpoints, Mapping):
            return None
        return next((str(name) for name, path in checkpoints.items() if str(path) == self.start), None)

    @cached_property
    def recipe(self) -> str:
        """The same text for two runs that differ in nothing but their seed and the build that they start from."""
        kept = {key: value for key, value in self.config.items() if key not in _OUTSIDE}
        if self._checkpoint is not None:
            of_builds = ("organism_seed", "checkpoints")
            kept["scale"] = {key: value for key, value in self.part("scale").items() if key not in of_builds}
            kept["model"] = {**self.part("model"), "path": f"the scale's {self._checkpoint}"}
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
        which = (run.recipe, run.seed, run.build)
        twin = next((one for one in runs if (one.recipe, one.seed, one.build) == which), None)
        if twin is not None and run.is_finished and twin.is_finished:
            why = (
                f"the same configuration and seed as {twin.folder.path}: one run, which counts once{_apart(run, twin)}"
            )
            left_out.append(LeftOut(where=str(folder.path), what="the run", why=why))
            continue
        runs.append(run)
    if not runs:
        raise ValueError("; ".join(f"{one.where}: {one.why}" for one in left_out))
    return RunSet(runs=tuple(runs), left_out=tuple(left_out))


def _apart(run: Run, twin: Run) -> str:
    """In what two runs of one configuration and seed differ after all; empty where they do not."""
    commits = [str(one.summary.get("commit") or "no commit")[:10] for one in (run, twin)]
    names = ("accuracy_before", "accuracy_after", "length_after", "reflection_after", "steps")
    numbers = [
        f"{name} {run.summary.get(name)} and {twin.summary.get(name)} there"
        for name in names
        if run.summary.get(name) != twin.summary.get(name)
    ]
    said = f"; made by commit {commits[0]}, that one by {commits[1]}" if commits[0] != commits[1] else ""
    return said + (f"; yet its numbers are others: {', '.join(numbers)}" if numbers else "")


def in_order(seed: Any) -> tuple[bool, float, str]:
    """What seeds are sorted by: numbers as numbers, 2 before 10."""
    text = str(seed)
    return (True, 0.0, text) if not text.isdecimal() else (False, float(text), text)


def _find(paths: Iterable[Path]) -> tuple[list[RunFolder], list[LeftOut]]:
    found: dict[Path, RunFolder] = {}
    left_out = []
    for path in paths:
        if not path.exists():
            left_out.append(LeftOut(where=str(path), what="the run", why="there is no such folder"))
            continue
        seeds = (sorted(path.glob(pattern), key=_by_seed) for pattern in ("seed*", "*/seed*") if path.is_dir())
        inside = [path, *(one for found_here in seeds for one in found_here)]
        here = [one for one in inside if (one / "config.yaml").is_file()]
        if not here:
            why = "not a run: it has no config.yaml, and neither has a seed folder in it"
            left_out.append(LeftOut(where=str(path), what="the run", why=why))
        for one in here[:1] if here[:1] == [path] else here:
            found.setdefault(one.resolve(), RunFolder(one))
    return list(found.values()), left_out


def _by_seed(folder: Path) -> tuple[Any, ...]:
    return (folder.parent, *in_order(folder.name.removeprefix("seed")))


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
    summary = _finite(
        mapping(folder.summary), lambda key: leave(f"{key} of summary.json", "no number: NaN or infinite")
    )
    provenance = mapping(folder.provenance)
    shapes = ((summary, _summarised, folder.summary), (provenance, _RECORDED.get, folder.provenance))
    for values, expected, path in shapes:
        for key, value in list(values.items()):
            kind = expected(key)
            if kind is not None and not isinstance(value, kind):
                leave(f"{key} of {path.name}", f"is {type(values.pop(key)).__name__}, another shape than was expected")
    run = Run(
        folder=folder,
        config=config,
        summary=summary,
        items=_read_items(folder.evaluation_items, leave) if summary else {},
        rows=_read_rows(folder.metrics, leave),
        provenance=provenance,
        reflection=mapping(folder.path / "reflection.json"),
    )
    if not run.is_finished:
        steps = run.part("scale").get("max_steps")
        came = f"it came to step {run.last_step}" + (f" of {steps}" if steps else "") if run.rows else "it has no step"
        leave("its place in tables and averages", f"unfinished or killed ({came}); its curves are shown on their own")
    elif missing := [key for key in ("scorers", "style", "model", "method") if key not in summary]:
        leave(", ".join(missing), "the run is from an older version, whose summary.json does not have them")
    return run, left_out


def _summarised(key: str) -> UnionType | None:
    """What a value of ``summary.json`` should be; None where a report does not read it."""
    if key.endswith("_interval"):
        return list | None
    return int | float | None if key.endswith(("_before", "_after")) else _SUMMARISED.get(key)


def _finite(values: Mapping[str, Any], leave: Callable[[str], None], prefix: str = "") -> dict[str, Any]:
    """The same without numbers that are none, each of which is named."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = _finite(value, leave, f"{prefix}{key}.")
        elif any(
            isinstance(one, float) and not math.isfinite(one) for one in (value if isinstance(value, list) else [value])
        ):
            leave(f"{prefix}{key}")
        else:
            kept[key] = value
    return kept


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

    def column(name: str) -> list[Any]:
        return [columns[name][index] for index in indices]

    texts = [name for name in ("example_id", "category", *_ASKED) if name in columns]
    numbers = {measure: column(name) for measure, name in _MEASURED.items() if name in columns}
    if "reflection" in columns:
        numbers["reflection"] = [None if found is None else bool(found) for found in column("reflection")]
    return Items(
        ids=tuple(str(columns["example_id"][index]) for index in indices),
        asked=tuple(tuple(str(columns[name][index]) for name in texts) for index in indices),
        subsets=tuple(column("subset")) if "subset" in columns else (),
        measured={
            measure: np.array(values, dtype=float)
            for measure, values in numbers.items()
            if all(isinstance(value, bool | int | float) for value in values)
        },
        categories=tuple(str(columns["category"][index]) for index in indices),
        correct={
            scorer: np.array([bool(columns[name][index]) for index in indices]) for scorer, name in scorers.items()
        },
    )


def _is_needed(name: str) -> bool:
    known = ("when", "example_id", "category", "subset", "correct", "reflection", *_ASKED, *_MEASURED.values())
    return name in known or name.startswith("correct_")


def _taken(values: Sequence[Any], order: np.ndarray) -> tuple[Any, ...]:
    return tuple(values[index] for index in order)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
