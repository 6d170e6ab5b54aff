"""How a measure falls with a dose: a monotone curve for each seed, and the dose at which it reaches a value.

Nothing is assumed of the curve's shape but that it does not rise again: of each seed's values it is the nearest such
curve in squares (isotonic regression), straight between doses. With three seeds a bootstrap over seeds has ten
different draws and is too narrow (docs/statistics.md), so that intervals are t's over the seeds' own curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from visual_r1.statistics import Interval
from visual_r1.studies.study import LENGTH, Dose, Side, Study, When
from visual_r1.studies.verdict import Runs, by_seed, interval_of, over_seeds

ACCURACY = "benchmark/accuracy"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What the seeds say of one cell."""

    cell: str
    dose: float | None
    """None for a cell beside the curve."""
    before: tuple[float, ...]
    """Of each seed."""
    after: tuple[float, ...]
    fitted: tuple[float, ...]
    """Of each seed's curve; empty beside it."""
    interval: Interval
    """Of the curve over seeds; beside it, of the values themselves."""
    accuracy_before: tuple[float, ...]
    """On the benchmark, of each seed, in [0, 1]."""
    accuracy: tuple[float, ...]
    """The same after training."""
    length_before: tuple[float, ...]
    """Tokens of a response to the benchmark, of each seed."""
    length: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A measure after training against a dose."""

    dose: Dose
    points: tuple[Point, ...]
    reaches: tuple[float, ...]
    """The dose at which each seed's curve has fallen to the value sought; inf where it never does, 0 where it starts
    there."""
    interval: Interval | None
    """Of that dose, over seeds; None where a seed's is not between the first dose and the last."""

    def record(self) -> dict[str, Any]:
        """As ``results.json`` holds it."""
        return {
            "measure": self.dose.measure,
            "label": self.dose.label,
            "falls_to": self.dose.falls_to,
            "at_dose_by_seed": [one if math.isfinite(one) else None for one in self.reaches],
            "at_dose": None if self.interval is None else self.interval.estimate,
            "at_dose_interval": None if self.interval is None else [self.interval.low, self.interval.high],
            "points": [
                {
                    "cell": point.cell,
                    "dose": point.dose,
                    "before_by_seed": list(point.before),
                    "after_by_seed": list(point.after),
                    "fitted_by_seed": list(point.fitted),
                    "estimate": point.interval.estimate,
                    "interval": [
                        one if math.isfinite(one) else None for one in (point.interval.low, point.interval.high)
                    ],
                    "accuracy_before_by_seed": list(point.accuracy_before),
                    "accuracy_by_seed": list(point.accuracy),
                    "length_before_by_seed": list(point.length_before),
                    "length_by_seed": list(point.length),
                }
                for point in self.points
            ],
        }


def curve_of(study: Study, dose: Dose, runs: Runs) -> Curve:
    """Reads and fits a study's curve.

    Raises:
        StudyError: a run lacks the measure.
    """
    after = {cell: _by_seed(dose.measure, cell, "after", study, runs) for cell in (*dose.doses, *dose.beside)}
    fits = [falling([after[cell][seed] for cell in dose.doses]) for seed in range(len(study.seeds))]
    points = [
        _point(cell, amount, study, runs, fitted=tuple(fit[position] for fit in fits))
        for position, (cell, amount) in enumerate(dose.doses.items())
    ]
    points += [_point(cell, None, study, runs, fitted=()) for cell in dose.beside]
    doses = tuple(dose.doses.values())
    reaches = tuple(dose_at(dose.falls_to, doses, fit) for fit in fits)
    is_inside = all(doses[0] < one < math.inf for one in reaches)
    return Curve(
        dose=dose,
        points=tuple(points),
        reaches=reaches,
        interval=over_seeds(reaches) if is_inside and len(reaches) > 1 else None,
    )


def falling(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest values, in squares, of which none is above the one before it."""
    return tuple(isotonic_regression(np.asarray(values, dtype=float), increasing=False).x.tolist())


def dose_at(value: float, doses: Sequence[float], fitted: Sequence[float]) -> float:
    """The first dose at which a falling curve, straight between its points, is at a value or under it.

    The first dose where it starts there; inf where it never comes.
    """
    if fitted[0] <= value:
        return doses[0]
    for low, high, above, under in zip(doses, doses[1:], fitted, fitted[1:], strict=False):
        if under <= value:
            return low + (high - low) * (above - value) / (above - under)
    return math.inf


def _by_seed(measure: str, cell: str, when: When, study: Study, runs: Runs) -> tuple[float, ...]:
    return by_seed(measure, Side(cell=cell, when=when), study.seeds, runs)


def _point(cell: str, dose: float | None, study: Study, runs: Runs, *, fitted: tuple[float, ...]) -> Point:
    assert study.dose is not None
    measure = study.dose.measure
    after = _by_seed(measure, cell, "after", study, runs)
    return Point(
        cell=cell,
        dose=dose,
        before=_by_seed(measure, cell, "before", study, runs),
        after=after,
        fitted=fitted,
        interval=interval_of((measure, fitted or after, runs[cell, study.seeds[0]])),
        accuracy_before=_by_seed(ACCURACY, cell, "before", study, runs),
        accuracy=_by_seed(ACCURACY, cell, "after", study, runs),
        length_before=_by_seed(LENGTH, cell, "before", study, runs),
        length=_by_seed(LENGTH, cell, "after", study, runs),
    )
