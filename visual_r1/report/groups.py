"""Runs that differ in nothing but their seed, and what they measured together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from visual_r1.examples import Example
from visual_r1.report.runs import Items, Run, in_order
from visual_r1.scoring.cambrian import Cambrian
from visual_r1.statistics import (
    Interval,
    ItemStratum,
    curve_band,
    difference_over_seeds,
    mean_over_seeds,
    paired_difference,
)

MOMENTS = ("before", "after")
HEADLINE = "strict"
"""The scorer of every number that names no other."""

_RATES = ("blank_accuracy", "parse_rate", "truncated_rate", "well_formed_rate", "reflection")
_PROBED = ("probe_accuracy", "probe_length", "probe_reflection", "probe_parse_rate")


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished seeds of one configuration, which may each have started from a build of its own."""

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

    def is_paired_with(self, other: Group) -> bool:
        """Whether run s of both belongs together: each seed has a model of its own, from which both started."""
        starts = [(str(run.seed), run.start) for run in self.runs]
        differ = len({start for _, start in starts}) == len(starts) > 1
        return differ and starts == [(str(run.seed), run.start) for run in other.runs]

    def answered(self, when: str, *, like: Items | None = None) -> tuple[Items, ...]:
        """Each seed's items in one order; empty unless every seed has them and was asked the same ones.

        Args:
            when: ``before`` or ``after``.
            like: whose order it is, and which items they must be; None for the first seed's.
        """
        found = [run.items[when] for run in self.runs if when in run.items]
        if not found or len(found) < len(self.runs):
            return ()
        first = like or found[0]
        aligned = [same for one in found if (same := one.in_order_of(first)) is not None]
        return tuple(aligned) if len(aligned) == len(found) else ()

    def values(
        self, measure: str, when: str, *, scorer: str = HEADLINE, category: str | None = None, like: Items | None = None
    ) -> np.ndarray | None:
        """Of each item the number that a measure is the mean of, ``[seeds, items]``.

        None without two items at least, or where it is not on record by item. ``scorer`` is asked for ``accuracy``
        alone; ``like`` is as in `answered`.
        """
        answered = self.answered(when, like=like)
        columns = [one.correct.get(scorer) if measure == "accuracy" else one.measured.get(measure) for one in answered]
        known = [column for column in columns if column is not None]
        if not known or len(known) < len(columns):
            return None
        indices = answered[0].of(category)
        return np.array([column[indices] for column in known], dtype=float) if len(indices) > 1 else None

    def verdicts(
        self, when: str, *, scorer: str = HEADLINE, category: str | None = None, like: Items | None = None
    ) -> np.ndarray | None:
        """Right (1) or wrong (0): `values` of accuracy."""
        return self.values("accuracy", when, scorer=scorer, category=category, like=like)

    def start(
        self, *, scorer: str = HEADLINE, category: str | None = None, like: Items | None = None
    ) -> np.ndarray | None:
        """As `verdicts` of the starting point, which is one row where all seeds began with the same answers."""
        verdicts = self.verdicts("before", scorer=scorer, category=category, like=like)
        is_one = verdicts is not None and bool((verdicts == verdicts[0]).all())
        return verdicts[:1] if verdicts is not None and is_one else verdicts

    def strata(self, scorer: str, *, category: str | None = None) -> tuple[ItemStratum, ...] | None:
        """How much each item counts in a scorer's accuracy; empty where all count the same, None where nobody can say.

        A scorer averages as the accuracies do that it has written down: plainly, or as `Cambrian` over collections.
        """
        answered = self.answered("after")
        if not answered:
            return None
        everything = answered[0].of(None)
        for weigh in (_alike, _cambrian):
            whole = weigh(answered[0], everything)
            if whole is not None and self._is_averaged_by(whole, scorer, like=answered[0]):
                return weigh(answered[0], answered[0].of(category))
        return None

    def _is_averaged_by(self, strata: tuple[ItemStratum, ...], scorer: str, *, like: Items) -> bool:
        for when in self.runs[0].moments:
            verdicts = self.verdicts(when, scorer=scorer, like=like)
            written = [_accuracy_on_record(run, scorer, when) for run in self.runs]
            if verdicts is None or not _agree(_means(verdicts, strata), written):
                return False
        return True


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
    """Finished runs by configuration, in the order in which they were named; seeds in order.

    Seeds that started from several builds are of one configuration, unless a seed is there with two of them: then the
    builds were varied on purpose, and each has a group of its own.
    """
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    configurations = [group for members in by_recipe.values() for group in _apart_where_crossed(members)]
    names = Counter(members[0].name for members in configurations)
    seen: Counter[str] = Counter()
    groups = []
    for members in configurations:
        name = members[0].name
        seen[name] += 1
        label = f"{name} ({seen[name]})" if names[name] > 1 else name
        groups.append(Group(label=label, runs=tuple(sorted(members, key=lambda run: in_order(run.seed)))))
    return tuple(groups)


def _apart_where_crossed(runs: Sequence[Run]) -> list[list[Run]]:
    if len({str(run.seed) for run in runs}) == len(runs):
        return [list(runs)]
    by_build: dict[str | None, list[Run]] = {}
    for run in runs:
        by_build.setdefault(run.build, []).append(run)
    return list(by_build.values())


def results_of_run(run: Run) -> Results:
    """A run's own numbers, with the intervals over items that it was written with."""
    return Results(
        label=run.label,
        benchmark=run.benchmark,
        seeds=(run.seed,),
        is_group=False,
        facts=(*_summarised(run), *_paired(Group(label=run.label, runs=(run,)))),
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
        values = [other.value for other in same]
        interval = _over_items(group, fact, values)
        facts.append(_over_seeds(fact, values) if interval is None else _fact(fact, interval))
    return Results(
        label=group.label,
        benchmark=group.benchmark,
        seeds=group.seeds,
        is_group=True,
        facts=(*facts, *_paired(group)),
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
    """A mean over seeds and items; None where its numbers by item are not on record, or their mean is another."""
    scorer, category = fact.scorer or HEADLINE, fact.category or None
    answered = group.answered("after")
    table = (
        group.values(fact.measure, fact.when, scorer=scorer, category=category, like=answered[0]) if answered else None
    )
    strata = group.strata(scorer, category=category) if fact.scorer else ()
    if table is None or strata is None or not _agree(_means(table, strata), values):
        return None
    return mean_over_seeds(table, strata=strata)


def _over_seeds(fact: Fact, values: Sequence[float]) -> Fact:
    """A mean over seeds with the t-interval over them; a share's ends stay in [0, 1].

    Equal numbers have no ends: that seeds agree does not make them certain. Baselines are facts and have none to need.
    """
    if len(set(values)) == 1:  # the mean of equal numbers must not round to another
        return replace(fact, value=values[0], low=None, high=None)
    (interval,) = curve_band([[value] for value in values])
    low, high = (
        (max(0.0, interval.low), min(1.0, interval.high)) if fact.unit == "share" else (interval.low, interval.high)
    )
    return replace(fact, value=interval.estimate, low=low, high=high)


def _alike(items: Items, indices: np.ndarray) -> tuple[ItemStratum, ...]:
    return ()


def _cambrian(items: Items, indices: np.ndarray) -> tuple[ItemStratum, ...] | None:
    """The weights of CV-Bench's collections among these items; None where there are none, or one has a single item."""
    examples = [
        Example(
            id=items.ids[index],
            images=(),
            question="-",
            choices=("a", "b"),
            solution="A",
            category=items.categories[index],
            subset=items.subsets[index] if items.subsets else None,
        )
        for index in indices
    ]
    parts = Cambrian().parts(examples)
    is_whole = sum(len(part.indices) for part in parts) == len(examples)
    if not parts or not is_whole or any(len(part.indices) < 2 for part in parts):
        return None
    return tuple(ItemStratum(part.weight, part.indices) for part in parts)


def _means(table: np.ndarray, strata: Sequence[ItemStratum]) -> np.ndarray:
    """Of each seed the mean of its items."""
    if not strata:
        return table.mean(axis=1)
    return np.sum([one.weight * table[:, list(one.items)].mean(axis=1) for one in strata], axis=0)


def _agree(means: np.ndarray, written: Sequence[float | None]) -> bool:
    known = [value for value in written if value is not None]
    return len(known) == len(means) and bool(np.allclose(means, known))


def _accuracy_on_record(run: Run, scorer: str, when: str) -> float | None:
    by_scorer = _mapping(_mapping(_mapping(run.summary.get("scorers")).get(scorer)).get(when))
    value = run.summary.get(f"accuracy_{when}") if scorer == HEADLINE else by_scorer.get("accuracy")
    return float(value) if isinstance(value, int | float) else None


def _paired(group: Group) -> Iterator[Fact]:
    """What comes of pairs of answers to one item, and what a gain cost."""
    gains = list(_gains(group))
    yield from gains
    yield from _above_blank(group)
    gain = next((one for one in gains if one.scorer == HEADLINE and not one.category), None)
    yield from _costs(group.runs, gain)


def _above_blank(group: Group) -> Iterator[Fact]:
    """Accuracy minus that of the same model on the same questions with blank images."""
    seen = group.verdicts("after")
    blank = group.values("blank_accuracy", "after")
    if seen is None or blank is None:
        return
    interval = difference(seen, blank, is_paired=True)
    yield Fact(
        measure="above_blank",
        value=interval.estimate,
        low=interval.low,
        high=interval.high,
        unit="difference",
        scorer=HEADLINE,
        num_items=seen.shape[1],
    )


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
        ends = values.get(f"{measure}_interval")
        is_pair = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
        low, high = ends if is_pair else (None, None)
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
    if not answered or not group.answered("before", like=answered[0]):
        return
    categories = (None, *dict.fromkeys(answered[0].categories))
    for scorer in answered[0].correct:
        for category in categories:
            after = group.verdicts("after", scorer=scorer, category=category)
            before = group.start(scorer=scorer, category=category, like=answered[0])
            strata = group.strata(scorer, category=category)
            if after is None or before is None or strata is None:
                continue
            interval = difference(after, before, is_paired=len(before) == len(after), strata=strata)
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


def difference(
    one: np.ndarray,
    other: np.ndarray,
    *,
    is_paired: bool = False,
    strata: Sequence[ItemStratum] = (),
    level: float = 0.95,
) -> Interval:
    """Mean of one minus the other on the same items, ``[seeds, items]`` each; over seeds where there are several."""
    if len(one) == 1 and len(other) == 1 and not strata:
        return paired_difference(one[0], other[0], level=level)
    return difference_over_seeds(one, other, paired=is_paired, strata=strata, level=level)


def _costs(runs: Sequence[Run], gain: Fact | None) -> Iterator[Fact]:
    """Time and tokens, and what a point of accuracy cost in them; no price without a gain.

    Where the gain's interval holds 0, no price is too high: the upper end is infinite.
    """
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
        yield Fact(
            measure=f"{measure}_per_point",
            value=mean / (100 * gain.value),
            low=None if gain.high is None else mean / (100 * gain.high),
            high=None if gain.low is None else mean / (100 * gain.low) if gain.low > 0 else inf,
            unit=f"{unit} per point",
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
