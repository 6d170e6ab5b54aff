"""What a ``study.yaml`` says: a claim, the runs that bear on it, and the conditions under which it holds.

::

    claim: GRPO on the base lifts accuracy far above the base.
    paper:
      says: CV-Bench rises from about 31 % to 59.47 %, one seed
      source: arXiv 2503.05132, Table 2
    cannot_say: What a model of two billion parameters does.
    seeds: [0, 1, 2]
    cells:                                   # a name and what is typed behind run.py; each is run with every seed
      base-grpo: model=base method=grpo
    conditions:                              # the claim holds if all of them do
      - says: accuracy rises by more than ten points
        measure: benchmark/accuracy
        of: base-grpo                        # after training; "base-grpo before" is where it started
        minus: base-grpo before
        above: 0.10

A measure is one of `SHARES`, a share of the benchmark's items; ``benchmark/length``, tokens of its responses; or the
name of any curve of ``metrics.jsonl``: its first value is "before", its last one "after".
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

When = Literal["before", "after"]

SHARES: Mapping[str, str] = {
    "benchmark/accuracy": "answers that are right",
    "benchmark/blank_accuracy": "answers that are right where the image is grey",
    "benchmark/reflection": "responses that reflect",
    "benchmark/readable": "responses with an answer that can be read",
    "benchmark/truncated": "responses cut at the limit",
}
"""The measures that are a share of the benchmark's items, in words."""
LENGTH = "benchmark/length"
FILE = "study.yaml"


class StudyError(ValueError):
    """A study that cannot be run or judged; names the file, the entry and what to write."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The runs of a cell, before or after training."""

    cell: str
    when: When = "after"

    def __str__(self) -> str:
        return self.cell if self.when == "after" else f"{self.cell} before"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A statement about one number, which its interval decides."""

    says: str
    measure: str
    of: Side
    minus: Side | None
    """What is subtracted; None judges the number itself."""
    above: float
    """-inf where there is no lower bound."""
    below: float
    """inf where there is no upper bound."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Those that it looks at."""
        return tuple(dict.fromkeys(side.cell for side in (self.of, self.minus) if side is not None))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim and how it is decided."""

    name: str
    """Of its folder."""
    claim: str
    paper: str
    """What the paper says of it."""
    source: str
    """Where."""
    cannot_say: str
    """What the verdict says nothing about."""
    seeds: tuple[int, ...]
    cells: Mapping[str, tuple[str, ...]]
    """What is typed behind run.py for each."""
    conditions: tuple[Condition, ...]

    @property
    def folder_name(self) -> str:
        """Of its folder under ``experiments/``."""
        return self.name


def load(path: Path) -> Study:
    """Reads a study.

    Args:
        path: its folder, or its file.

    Raises:
        StudyError: there is none, or an entry is missing, unknown or of the wrong kind.
    """
    file = path / FILE if path.is_dir() else path
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{file}: there is no such study") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{file}: {' '.join(str(error).split())}") from error
    entries = _Entries(file, "", given)
    entries.only("claim", "paper", "cannot_say", "seeds", "cells", "conditions")
    paper = entries.inner("paper")
    paper.only("says", "source")
    cells = {str(name): _overrides(file, str(name), value) for name, value in entries.mapping("cells").items()}
    study = Study(
        name=file.resolve().parent.name,
        claim=entries.text("claim"),
        paper=paper.text("says"),
        source=paper.text("source"),
        cannot_say=entries.text("cannot_say"),
        seeds=_seeds(entries),
        cells=cells,
        conditions=tuple(
            _condition(_Entries(file, f"conditions[{number}]", one), cells)
            for number, one in enumerate(entries.sequence("conditions"))
        ),
    )
    unused = set(cells) - {cell for condition in study.conditions for cell in condition.cells}
    if unused:
        raise StudyError(f"{file}: cells {sorted(unused)}: no condition looks at them")
    return study


@dataclass(frozen=True)
class _Entries:
    """A mapping of the file, which knows where it stands there."""

    file: Path
    place: str
    given: Any

    def __post_init__(self) -> None:
        if not isinstance(self.given, Mapping):
            raise StudyError(f"{self.file}: {self.place or 'it'} is {self.given!r}, expected entries")

    def only(self, *known: str) -> None:
        """Refuses other entries than these."""
        if unknown := sorted(set(self.given) - set(known)):
            raise StudyError(f"{self.file}: {self._at(unknown[0])} is unknown, expected one of {list(known)}")

    def text(self, key: str) -> str:
        """An entry that is words."""
        return self._typed(key, str, "words").strip()

    def mapping(self, key: str) -> Mapping[Any, Any]:
        """An entry that holds entries, one at least."""
        return self._typed(key, Mapping, "names and what they stand for")

    def sequence(self, key: str) -> Sequence[Any]:
        """An entry that is a list, of one at least."""
        return self._typed(key, list, "a list")

    def number(self, key: str, default: float) -> float:
        """An entry that may be missing."""
        if key not in self.given:
            return default
        value = self.given[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise StudyError(f"{self.file}: {self._at(key)} is {value!r}, expected a number")
        return float(value)

    def inner(self, key: str) -> _Entries:
        """An entry that holds entries."""
        return _Entries(self.file, self._at(key), self.mapping(key))

    def _typed(self, key: str, kind: type[Any], words: str) -> Any:
        value = self.given.get(key)
        if not isinstance(value, kind) or not value:
            raise StudyError(f"{self.file}: {self._at(key)} is {value!r}, expected {words}")
        return value

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key


def _overrides(file: Path, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, str) or any("=" not in one for one in shlex.split(value)):
        raise StudyError(f"{file}: cells.{name} is {value!r}, expected what is typed behind run.py: model=base ...")
    typed = tuple(shlex.split(value))
    if taken := [one for one in typed if one.partition("=")[0] in ("seed", "name", "runs_dir")]:
        raise StudyError(f"{file}: cells.{name}: {taken[0]}: the study itself says this")
    return typed


def _seeds(entries: _Entries) -> tuple[int, ...]:
    seeds = entries.sequence("seeds")
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise StudyError(f"{entries.file}: seeds is {seeds}, expected numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise StudyError(f"{entries.file}: seeds is {seeds}: one stands there twice")
    return tuple(seeds)


def _condition(entries: _Entries, cells: Mapping[str, Any]) -> Condition:
    entries.only("says", "measure", "of", "minus", "above", "below")
    above, below = entries.number("above", -math.inf), entries.number("below", math.inf)
    if not above < below or (above, below) == (-math.inf, math.inf):
        raise StudyError(f"{entries.file}: {entries.place}: give above, below, or both, the lower one first")
    measure = entries.text("measure")
    if measure.startswith("benchmark/") and measure not in (*SHARES, LENGTH):
        raise StudyError(
            f"{entries.file}: {entries.place}.measure={measure} is unknown, expected one of {[*SHARES, LENGTH]} or a "
            "curve of metrics.jsonl"
        )
    return Condition(
        says=entries.text("says"),
        measure=measure,
        of=_side(entries, "of", cells),
        minus=_side(entries, "minus", cells) if "minus" in entries.given else None,
        above=above,
        below=below,
    )


def _side(entries: _Entries, key: str, cells: Mapping[str, Any]) -> Side:
    name, _, when = entries.text(key).partition(" ")
    if name not in cells:
        raise StudyError(f"{entries.file}: {entries.place}.{key}={name}: there is no such cell, only {sorted(cells)}")
    if when not in ("", "before"):
        raise StudyError(f"{entries.file}: {entries.place}.{key}: {when!r} is unknown, expected nothing or 'before'")
    return Side(cell=name, when="before" if when else "after")
