"""Runs that differ in nothing but their seed, and what they measured together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visual_r1.report.runs import Items, Run
from visual_r1.statistics import Interval, curve_band, difference_over_seeds, mean_over_seeds, paired_difference

MOMENTS = ("before", "after")
HEADLINE = "strict"
"""The scorer of every number that names no other."""

_RATES = ("blank_accuracy", "parse_rate", "truncated_rate", "well_formed_rate", "reflection")
_PROBED = ("probe_accuracy", "probe_length", "probe_reflection", "probe_parse_rate")


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished seeds of one configuration."""

    label: str
    runs: tuple[Run, ...]

    @property
    def benchmark(self) -> str:
        return self.runs[0].benchmark

    @property
    def seeds(self) -> tuple[Any, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def is_trained(self) -> bool:
        """Whether a seed could have come out otherwise: a model that was only asked is the same every time."""
        return any(run.summary.get("steps") for run in self.runs)

    def answered(self, when: str) -> tuple[Items, ...]:
        """Each seed's items; empty unless every seed has them and was asked the same ones."""
        found = [run.items[when] for run in self.runs if when in run.items]
        is_same = len(found) == len(self.runs) and all(one.ids == found[0].ids for one in found)
        return tuple(found) if is_same else ()

    def verdicts(self, when: str, *, scorer: str = HEADLINE, category: str | None = None) -> np.ndarray | None:
        """Right (1) or wrong (0), ``[seeds, items]``; None without two items at least, or without this scorer."""
        answered = self.answered(when)
        if not answered or any(scorer not in one.correct for one in answered):
            return None
        indices = answered[0].of(category)
        return np.array([one.correct[scorer][indices] for one in answered], dtype=float) if len(indices) > 1 else None

    def start(self, *, scorer: str = HEADLINE, category: str | None = None) -> np.ndarray | None:
        """As `verdicts` of the starting point, which is one row where all seeds began with the same answers."""
        verdicts = self.verdicts("before", scorer=scorer, category=category)
        is_one = verdicts is not None and bool((verdicts == verdicts[0]).all())
        return verdicts[:1] if verdicts is not None and is_one else verdicts


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One number with all that says what it is: a row of the CSV."""

    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    """The ends of the 95 % interval; None where there is none to give."""
    unit: str
    when: str = "after"
    scorer: str = ""
    category: str = ""
    num_items: int | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run or a group measured."""

    label: str
    benchmark: str
    seeds: tuple[Any, ...]
    is_group: bool
    facts: tuple[Fact, ...]

    def get(
        self, measure: str, *, when: str = "after", scorer: str | None = None, category: str | None = None
    ) -> Fact | None:
        """A fact; of a measure that scorers disagree in, the headline's unless another is named."""
        for fact in self.facts:
            is_scorer = fact.scorer in ("", HEADLINE) if scorer is None else fact.scorer == scorer
            if (fact.measure, fact.when, fact.category) == (measure, when, category or "") and is_scorer:
                return fact
        return None

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fact.category for fact in self.facts if fact.category))

    @property
    def scorers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fact.scorer for fact in self.facts if fact.scorer))


def groups_of(runs: Iterable[Run]) -> tuple[Group, ...]:
    """Finished runs by configuration, in the order in which they were named; seeds in order."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    names = Counter(members[0].name for members in by_recipe.values())
    seen: Counter[str] = Counter()
    groups = []
    for members in by_recipe.values():
        name = members[0].name
        seen[name] += 1
        label = f"{name} ({seen[name]})" if names[name] > 1 else name
        groups.append(Group(label=label, runs=tuple(sorted(members, key=lambda run: str(run.seed)))))
    return tuple(groups)


def results_of_run(run: Run) -> Results:
    """A run's own numbers, with the intervals over items that it was written with."""
    return Results(
        label=run.label,
        benchmark=run.benchmark,
        seeds=(run.seed,),
        is_group=False,
        facts=(*_summarised(run), *_gains(Group(label=run.label, runs=(run,))), *_costs([run])),
    )


def results_of_group(group: Group) -> Results:
    """A group's numbers: accuracies with intervals over seeds and items, the rest as means over seeds."""
    if len(group.runs) == 1:
        one = results_of_run(group.runs[0])
        return Results(label=group.label, benchmark=group.benchmark, seeds=group.seeds, is_group=True, facts=one.facts)
    by_seed = [_summarised(run) for run in group.runs]
    facts = []
    for fact in by_seed[0]:
        same = [other for facts in by_seed for other in facts if _what(other) == _what(fact)]
        if len(same) < len(by_seed):
            continue
        interval = _over_items(group, fact, [other.value for other in same]) or _over_seeds(
            [other.value for other in same]
        )
        facts.append(_fact(fact, interval))
    return Results(
        label=group.label,
        benchmark=group.benchmark,
        seeds=group.seeds,
        is_group=True,
        facts=(*facts, *_gains(group), *_costs(group.runs)),
    )


def _what(fact: Fact) -> tuple[str, ...]:
    return (fact.measure, fact.when, fact.scorer, fact.category)


def _fact(like: Fact, interval: Interval) -> Fact:
    return Fact(
        measure=like.measure,
        value=interval.estimate,
        low=interval.low,
        high=interval.high,
        unit=like.unit,
        when=like.when,
        scorer=like.scorer,
        category=like.category,
        num_items=like.num_items,
    )


def _over_items(group: Group, fact: Fact, values: Sequence[float]) -> Interval | None:
    """An accuracy over seeds and items; None where it is no mean over items, as Cambrian's is not."""
    if fact.measure != "accuracy":
        return None
    verdicts = group.verdicts(fact.when, scorer=fact.scorer or HEADLINE, category=fact.category or None)
    if verdicts is None or not np.allclose(verdicts.mean(axis=1), values):
        return None
    return mean_over_seeds(verdicts)


def _over_seeds(values: Sequence[float]) -> Interval:
    if len(set(values)) == 1:  # chance and the like: the mean of equal numbers must not round to another
        return Interval(values[0], values[0], values[0])
    return curve_band([[value] for value in values])[0]


def _summarised(run: Run) -> list[Fact]:
    summary = run.summary
    facts: list[Fact] = []
    for when in run.moments:
        flat = {key.replace(f"_{when}", ""): value for key, value in summary.items() if f"_{when}" in key}
        facts += _measured({**flat, "num_items": summary.get("num_items")}, when=when, scorer=HEADLINE)
        for category, measured in _mapping(summary.get("by_category")).items():
            facts += _measured(_mapping(_mapping(measured).get(when)), when=when, scorer=HEADLINE, category=category)
        for scorer, measured in _mapping(summary.get("scorers")).items():
            if scorer == HEADLINE:
                continue
            values = _mapping(_mapping(measured).get(when))
            facts += _measured(values, when=when, scorer=scorer)
            for category, part in _mapping(values.get("by_category")).items():
                facts += _measured(_mapping(part), when=when, scorer=scorer, category=category)
    facts += _measured({key: summary.get(key) for key in ("chance", "majority")}, when="after", scorer=HEADLINE)
    return facts


def _measured(values: Mapping[str, Any], *, when: str, scorer: str, category: str = "") -> Iterator[Fact]:
    num_items = values.get("num_items")
    for measure in ("accuracy", "chance", "majority", *_RATES, "length", *_PROBED):
        value = values.get(measure)
        if not isinstance(value, int | float):
            continue
        low, high = _mapping({"ends": values.get(f"{measure}_interval")}).get("ends") or (None, None)
        is_scored = measure in ("accuracy", "chance", "majority", "blank_accuracy", "parse_rate")
        if scorer != HEADLINE and not is_scored:
            continue
        yield Fact(
            measure=measure,
            value=float(value),
            low=low,
            high=high,
            unit="tokens" if measure.endswith("length") else "share",
            when=when,
            scorer=scorer if is_scored else "",
            category=category,
            num_items=num_items if isinstance(num_items, int) else None,
        )


def _gains(group: Group) -> Iterator[Fact]:
    """After minus before on the same items, by scorer and category."""
    answered = group.answered("after")
    if not answered or not group.answered("before") or answered[0].ids != group.answered("before")[0].ids:
        return
    categories = (None, *dict.fromkeys(answered[0].categories))
    for scorer in answered[0].correct:
        for category in categories:
            after = group.verdicts("after", scorer=scorer, category=category)
            before = group.start(scorer=scorer, category=category)
            if after is None or before is None:
                continue
            interval = difference(after, before, is_paired=len(before) == len(after))
            yield Fact(
                measure="gain",
                value=interval.estimate,
                low=interval.low,
                high=interval.high,
                unit="difference",
                scorer=scorer,
                category=category or "",
                num_items=after.shape[1],
            )


def difference(one: np.ndarray, other: np.ndarray, *, is_paired: bool = False, level: float = 0.95) -> Interval:
    """Mean of one minus the other on the same items, ``[seeds, items]`` each; over seeds where there are several."""
    if len(one) == 1 and len(other) == 1:
        return paired_difference(one[0], other[0], level=level)
    return difference_over_seeds(one, other, paired=is_paired, level=level)


def _costs(runs: Sequence[Run]) -> Iterator[Fact]:
    """Time and tokens, and what a point of accuracy cost in them; no price without a gain."""
    gains = list(_gains(Group(label="", runs=tuple(runs))))
    gain = next((one for one in gains if one.scorer == HEADLINE and not one.category), None)
    for measure, unit, values in (
        ("seconds", "seconds", [run.seconds for run in runs]),
        ("tokens", "tokens", [run.last("num_tokens") for run in runs]),
        ("steps", "steps", [float(run.summary.get("steps") or 0) for run in runs]),
    ):
        known = [value for value in values if value is not None]
        if len(known) < len(runs):
            continue
        mean = sum(known) / len(known)
        yield Fact(measure=measure, value=mean, unit=unit)
        if unit == "steps" or gain is None or gain.value <= 0:
            continue
        has_ends = gain.low is not None and gain.high is not None and gain.low > 0
        yield Fact(
            measure=f"{measure}_per_point",
            value=mean / (100 * gain.value),
            low=mean / (100 * gain.high) if has_ends and gain.high else None,
            high=mean / (100 * gain.low) if has_ends and gain.low else None,
            unit=f"{unit} per point",
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
