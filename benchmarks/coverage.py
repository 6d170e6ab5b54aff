"""How often the intervals of ``visual_r1/statistics.py`` hold the truth: `python -m benchmarks.coverage`, two minutes.

A run's verdict on an item is whether a normal score is positive: the item's difficulty, which all runs share, and
chance, around a level that each seed draws for itself. So accuracy, the spread between seeds and the agreement of two
runs are what a `Design` says. An interval should hold the accuracy of endlessly many seeds on endlessly many items in
95 % of draws; 93 to 97 % is what is asked of it. What it does not reach stands in the results, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from math import sqrt
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from benchmarks.recording import RESULTS, facts
from visual_r1 import statistics
from visual_r1.files import write_json

DRAWS = 2000
FILE = RESULTS / "coverage.json"


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is drawn, and from what truth."""

    num_items: int
    num_seeds: int
    accuracy: float
    """Of endlessly many seeds on endlessly many items."""
    seed_sd: float = 0.0
    """Of the accuracy between seeds, as a share."""
    correlation: float = 0.8
    """Of the scores of two runs on one item."""
    difference: float = 0.0
    """By how much the other method is better, in comparisons."""
    seed_correlation: float = 0.0
    """Of a seed's level under two methods: above 0 where each seed starts both from a build of its own."""


@cache
def _level(accuracy: float, seed_sd: float) -> tuple[float, float]:
    """Mean and standard deviation of a seed's level, whose normal distribution function is its accuracy."""
    if not seed_sd:
        return float(ndtri(accuracy)), 0.0
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def center(sd: float) -> float:
        return float(ndtri(accuracy)) * sqrt(1 + sd**2)

    def missed(sd: float) -> float:
        return sqrt(weights @ (ndtr(center(sd) + sd * points) - accuracy) ** 2) - seed_sd

    sd = float(brentq(missed, 1e-6, 3.0))
    return center(sd), sd


def verdicts(design: Design, generator: np.random.Generator, sides: int = 1) -> NDArray[np.bool_]:
    """[S, I] for one method; for two, [2 S, I], the better one first. Unless they correlate, seeds are drawn anew."""
    rows = []
    items = sqrt(design.correlation) * generator.standard_normal(design.num_items)
    common = generator.standard_normal((design.num_seeds, 1)) if design.seed_correlation else np.zeros(1)
    for side in range(sides):
        better = design.difference if side < sides - 1 else 0.0
        center, sd = _level(design.accuracy + better, design.seed_sd)
        own = sqrt(1 - design.seed_correlation) * generator.standard_normal((design.num_seeds, 1))
        levels = center + sd * (sqrt(design.seed_correlation) * common + own)
        chance = generator.standard_normal((design.num_seeds, design.num_items))
        rows.append(items + sqrt(1 - design.correlation) * chance + levels > 0)
    return np.concatenate(rows)


def _wilson(table: NDArray[np.bool_], resamples: int) -> statistics.Interval:
    return statistics.wilson(int(table[0].sum()), table.shape[1])


def _resampled(table: NDArray[np.bool_], resamples: int) -> statistics.Interval:
    """What `mean_over_seeds` corrects: percentiles of seeds and items that are resampled as they are."""
    num_seeds, num_items = table.shape
    generator = np.random.default_rng(0)
    # An item's column of verdicts is a number in base 2.
    counts = np.bincount(2 ** np.arange(num_seeds) @ table, minlength=2**num_seeds)
    kinds = np.arange(2**num_seeds) >> np.arange(num_seeds)[:, None] & 1
    items = generator.multinomial(num_items, counts / num_items, size=resamples) @ kinds.T / num_items
    seeds = generator.integers(num_seeds, size=(resamples, num_seeds))
    low, high = np.quantile(np.take_along_axis(items, seeds, axis=1).mean(axis=1), [0.025, 0.975])
    return statistics.Interval(float(table.mean()), float(low), float(high))


def _paired(table: NDArray[np.bool_], resamples: int) -> statistics.Interval:
    return statistics.paired_difference(table[0], table[1], resamples=resamples)


def _over_seeds(table: NDArray[np.bool_], resamples: int) -> statistics.Interval:
    half = len(table) // 2
    return statistics.difference_over_seeds(table[:half], table[half:])


def _seed_by_seed(table: NDArray[np.bool_], resamples: int) -> statistics.Interval:
    half = len(table) // 2
    return statistics.difference_over_seeds(table[:half], table[half:], paired=True)


METHODS: dict[str, tuple[int, Callable[[NDArray[np.bool_], int], statistics.Interval]]] = {
    "wilson": (1, _wilson),
    "bootstrap_mean": (1, lambda table, resamples: statistics.bootstrap_mean(table[0], resamples=resamples)),
    "mean_over_seeds": (1, lambda table, resamples: statistics.mean_over_seeds(table)),
    "resampled seeds and items": (1, _resampled),
    "paired_difference": (2, _paired),
    "difference_over_seeds": (2, _over_seeds),
    "difference_over_seeds, paired": (2, _seed_by_seed),
}
"""How many methods are compared, and the interval: of the truth that `covered` says."""


def intervals(method: str, design: Design, *, draws: int, resamples: int) -> list[statistics.Interval]:
    """One a draw."""
    sides, interval = METHODS[method]
    generator = np.random.default_rng(0)
    return [interval(verdicts(design, generator, sides), resamples) for _ in range(draws)]


def covered(method: str, design: Design, *, draws: int = DRAWS, resamples: int = 2000) -> float:
    """In what share of draws the interval holds the accuracy, or the difference where two methods are compared."""
    truth = design.difference if METHODS[method][0] == 2 else design.accuracy
    drawn = intervals(method, design, draws=draws, resamples=resamples)
    return float(np.mean([one.low <= truth <= one.high for one in drawn]))


def designs() -> list[tuple[str, Design]]:
    """What is measured, in order."""
    # A spread of seeds is at most 0.4 of what is left to 0 or 100 %: more cannot be near a normal.
    spreads = {0.05: (0, 0.01), 0.5: (0.02,), 0.7: (0, 0.01, 0.02, 0.04), 0.95: (0, 0.02), 0.98: (0.005,)}
    spreads[0.995] = (0, 0.002)
    cases: list[tuple[str, Design]] = []
    for num_items, (accuracy, sds) in product((400, 2638), spreads.items()):
        for sd in sds:
            one = Design(num_items=num_items, num_seeds=1, accuracy=accuracy, seed_sd=sd)
            if not sd:
                cases += [(method, one) for method in ("wilson", "bootstrap_mean", "paired_difference")]
            for num_seeds in (2, 3, 5) if accuracy == 0.7 else (3, 5):
                over = replace(one, num_seeds=num_seeds)
                cases += [("mean_over_seeds", over), ("difference_over_seeds", over)]
                if (accuracy, num_seeds) == (0.7, 3):
                    cases.append(("mean_over_seeds", replace(over, correlation=0.4)))
                    cases.append(("difference_over_seeds", replace(over, difference=0.05)))
                if sd and num_seeds > 2:
                    paired = replace(over, seed_correlation=0.8)
                    cases.append(("difference_over_seeds, paired", paired))
                    if accuracy == 0.7:
                        cases.append(("difference_over_seeds, paired", replace(paired, difference=0.05)))
                if sd == 0.04 and num_seeds == 3:
                    cases.append(("resampled seeds and items", over))
    return cases


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What docs/statistics.md shows: by interval and seeds, the least and the most covered design."""
    groups: dict[tuple[str, int, bool], list[Mapping[str, Any]]] = {}
    for row in rows:
        at_ceiling = row["accuracy"] == 0.995 and row["num_items"] == 400
        groups.setdefault((row["method"], row["num_seeds"], at_ceiling), []).append(row)
    lines = ["| interval | seeds | designs | least, % | most, % |", "| --- | ---: | --- | --- | --- |"]
    for (method, num_seeds, at_ceiling), of_group in sorted(groups.items(), key=lambda item: (item[0][2], item[0])):
        least, most = (_shown(pick(of_group, key=itemgetter("covered"))) for pick in (min, max))
        where = "400 items, 99.5 %" if at_ceiling else str(len(of_group))
        lines.append(f"| `{method}` | {num_seeds} | {where} | {least} | {most} |")
    return "\n".join(lines)


def _shown(row: Mapping[str, Any]) -> str:
    spread = f", sd {100 * row['seed_sd']:g}" if row["num_seeds"] > 1 else ""
    return f"{100 * row['covered']:.1f} ({row['num_items']:,} items, {100 * row['accuracy']:g} %{spread})"


def main() -> None:
    """Measures all designs and writes ``results/coverage.json``."""
    record = facts({"draws": DRAWS, "resamples": 2000, "level": 0.95})
    rows: list[dict[str, Any]] = []
    for method, design in designs():
        rows.append({"method": method, **asdict(design), "covered": covered(method, design)})
        print(rows[-1], flush=True)
    write_json(FILE, {**record, "results": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
