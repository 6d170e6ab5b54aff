"""The entries of a study's file, which know where they stand in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class StudyError(ValueError):
    """A study that cannot be run or judged; names the file, the entry and what to write."""


class OtherScaleError(StudyError):
    """A study that says nothing of the scale asked for."""


@dataclass(frozen=True)
class Entries:
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
            raise StudyError(f"{self.file}: {self.at(unknown[0])} is unknown, expected one of {list(known)}")

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
            raise StudyError(f"{self.file}: {self.at(key)} is {value!r}, expected a number")
        return float(value)

    def inner(self, key: str) -> Entries:
        """An entry that holds entries."""
        return Entries(self.file, self.at(key), self.mapping(key))

    def _typed(self, key: str, kind: type[Any], words: str) -> Any:
        value = self.given.get(key)
        if not isinstance(value, kind) or not value:
            raise StudyError(f"{self.file}: {self.at(key)} is {value!r}, expected {words}")
        return value

    def at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key
