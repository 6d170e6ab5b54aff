"""What a study's probed runs did with a thought that was cut, and with a reflection that was put into one.

Each number is of forced answers that `visual_r1.interventions` has asked for, on the same items within a pair of rows:
a thought that reflects, whole and cut before it does; a thought that does not, as it is, with a reflection put in at
its end, and with an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from visual_r1.interventions import CUT, EMPTY, FORCED, WHOLE_REFLECTING, WHOLE_UNREFLECTING
from visual_r1.statistics import Interval
from visual_r1.studies.study import Study, When
from visual_r1.studies.verdict import Runs, over_seeds, possible, probed_row

PAIRS = (
    ("cut", WHOLE_REFLECTING, CUT, -1, "so the reflection is worth"),
    ("forced", WHOLE_UNREFLECTING, FORCED, 1, "so one put in is worth"),
    ("forced", WHOLE_UNREFLECTING, EMPTY, 1, "so an empty one is worth"),
)
"""A section of ``reflection.json``, a thought as it was, what was made of it, and a name for what reflection is worth:
what was made minus what it was (1), or the other way round where the reflection was taken away (-1)."""


@dataclass(frozen=True, kw_only=True)
class Forced:
    """How often the answers were right that one condition forced, or the difference of two."""

    cell: str
    when: When
    condition: str
    is_difference: bool
    by_seed: tuple[float | None, ...]
    """In [0, 1], of a difference in [-1, 1]; None where the seed had no such thought."""
    num_items: tuple[int, ...]
    interval: Interval | None
    """Over the seeds that had some; None with fewer than two."""

    def record(self) -> dict[str, Any]:
        """As ``results.json`` holds it."""
        return {
            "cell": self.cell,
            "when": self.when,
            "condition": self.condition,
            "is_difference": self.is_difference,
            "by_seed": list(self.by_seed),
            "items_by_seed": list(self.num_items),
            "estimate": None if self.interval is None else self.interval.estimate,
            "interval": None if self.interval is None else [self.interval.low, self.interval.high],
        }


def causal_test(study: Study, runs: Runs) -> tuple[Forced, ...]:
    """The forced answers of the cells that a study probes, before training and after it; empty where it probes none.

    Raises:
        StudyError: a run's ``reflection.json`` cannot be read.
    """
    return tuple(
        forced for cell in study.probed for when in get_args(When) for forced in _of_cell(study, cell, when, runs)
    )


def _of_cell(study: Study, cell: str, when: When, runs: Runs) -> Iterator[Forced]:
    shown: set[str] = set()
    for section, whole, changed, sign, worth in PAIRS:
        found = {
            condition: [_accuracy(section, condition, when, runs, cell, seed) for seed in study.seeds]
            for condition in (whole, changed)
        }
        for condition, values in found.items():
            if condition not in shown:
                yield _forced(cell, when, condition, values, is_difference=False)
            shown.add(condition)
        pairs = zip(found[whole], found[changed], strict=True)
        differences = [
            (None if was is None or now is None else sign * (now - was), min(num_items, others))
            for (was, num_items), (now, others) in pairs
        ]
        yield _forced(cell, when, worth, differences, is_difference=True)


def _accuracy(section: str, condition: str, when: When, runs: Runs, cell: str, seed: int) -> tuple[float | None, int]:
    row = probed_row(section, "accuracy", condition, when, runs[cell, seed])
    return (None, 0) if row is None else (float(row["estimate"]), int(row["n"]))


def _forced(
    cell: str, when: When, condition: str, values: list[tuple[float | None, int]], *, is_difference: bool
) -> Forced:
    known = [value for value, _ in values if value is not None]
    return Forced(
        cell=cell,
        when=when,
        condition=condition,
        is_difference=is_difference,
        by_seed=tuple(value for value, _ in values),
        num_items=tuple(num_items for _, num_items in values),
        interval=possible(over_seeds(known), is_difference=is_difference) if len(known) > 1 else None,
    )
