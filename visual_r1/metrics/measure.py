"""Several measurements at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from visual_r1.examples import Rollout

Metric = Callable[[Sequence[Rollout]], Mapping[str, float]]


def measure(metrics: Iterable[Metric], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What every metric measures on the rollouts, in one mapping.

    Raises:
        ValueError: two metrics measure under one name, so one curve would silently hide the other.
    """
    values: dict[str, float] = {}
    for metric in metrics:
        measured = metric(rollouts)
        if shared := values.keys() & measured.keys():
            raise ValueError(f"two metrics measure {', '.join(sorted(shared))}")
        values |= measured
    return values


def means(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each sample by name; an empty sample has none, so its name is absent."""
    return {name: fmean(sample) for name, sample in samples.items() if sample}
