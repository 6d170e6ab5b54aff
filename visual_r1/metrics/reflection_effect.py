"""What reflection goes along with in completions that are there already; no new ones are sampled.

Units: a *prompt* is a question, a *visit* one occasion on which it was asked (a step of the training). Completions are
only ever compared within a prompt's visit, and intervals take prompts as what was drawn: completions of one prompt are
no independent evidence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from scipy.special import stdtrit

from visual_r1.metrics.reflection import Reflection
from visual_r1.metrics.stated_answer import stated_answer
from visual_r1.statistics import Interval, wilson


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a completion did."""

    prompt: str
    visit: int
    reflects: bool
    is_right: bool


@dataclass(frozen=True)
class Estimate:
    """A number and what it rests on."""

    value: float | None
    """None where nothing can be estimated."""
    interval: Interval | None
    """None where fewer than two prompts contribute, or where they all agree: a width of 0 would claim certainty."""
    num_prompts: int
    """Prompts that contribute."""


def effect_within_prompt(outcomes: Iterable[Outcome], *, level: float = 0.95) -> Estimate:
    """P(right | reflects) - P(right | does not reflect), within the same prompt.

    In each visit of a prompt with n1 completions that reflect and n0 that do not, the shares of right ones are
    subtracted, and the differences are averaged with weights n1 n0 / (n1 + n0): the Mantel-Haenszel difference of risks
    (Greenland and Robins, Biometrics 41 (1985), page 55), which a regression of right on reflects with an intercept
    for every visit gives too. A visit without both kinds has no weight. Interval: jackknife over prompts, t of their
    number minus 1.

    Within a prompt neither its difficulty nor its wording can make the difference. What differs between its completions
    can: a completion that never comes to an answer does not reflect either.
    """
    visits: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        visits[one.prompt, one.visit].append(one)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (prompt, _), group in visits.items():
        reflecting = [one.is_right for one in group if one.reflects]
        others = [one.is_right for one in group if not one.reflects]
        if reflecting and others:
            weight = len(reflecting) * len(others) / len(group)
            sums[prompt][0] += weight * (sum(reflecting) / len(reflecting) - sum(others) / len(others))
            sums[prompt][1] += weight
    return _within(_jackknife(list(sums.values()), lambda total: _ratio(*total), level), -1, 1)


def gap(outcomes: Iterable[Outcome], *, level: float = 0.95) -> Estimate:
    """The same difference over all completions together, easy and hard prompts mixed: what a naive count reports."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for one in outcomes:
        start = 0 if one.reflects else 2
        sums[one.prompt][start] += one.is_right
        sums[one.prompt][start + 1] += 1

    def difference(total: Sequence[float]) -> float | None:
        reflecting, others = _ratio(*total[:2]), _ratio(*total[2:])
        return None if reflecting is None or others is None else reflecting - others

    return _within(_jackknife(list(sums.values()), difference, level), -1, 1)


def share(values: Iterable[tuple[Hashable, bool]], *, level: float = 0.95) -> Estimate:
    """How many of the outcomes, each given with its prompt, are true.

    Interval: Wilson's where each prompt has one outcome, and where all outcomes are equal, each prompt counted once;
    else as in `effect_within_prompt`.
    """
    known = list(values)
    prompts = {prompt for prompt, _ in known}
    estimate = ratio(((prompt, value, 1.0) for prompt, value in known), level=level)
    if estimate.value is None:
        return estimate
    if len(prompts) == len(known) or estimate.value in (0, 1):
        return replace(estimate, interval=wilson(round(estimate.value * len(prompts)), len(prompts), level))
    return _within(estimate, 0, 1)


def ratio(values: Iterable[tuple[Hashable, float, float]], *, level: float = 0.95) -> Estimate:
    """One sum over another, such as words over tokens; each value is (prompt, numerator, denominator)."""
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for prompt, numerator, denominator in values:
        sums[prompt][0] += numerator
        sums[prompt][1] += denominator
    return _jackknife(list(sums.values()), lambda total: _ratio(*total), level)


FLIPS = (
    "wrong to right",
    "right to wrong",
    "wrong to another wrong",
    "stays right",
    "stays wrong",
    "right, then no readable answer",
    "wrong, then no readable answer",
    "no answer stated before",
)
"""What may become of the answer that stood before the first reflection."""


def flip(stated: str | None, final: str | None, *, solution: str) -> str:
    """Which of `FLIPS` it is, from the letters that were stated before and answered; None where there is none."""
    if stated is None:
        return "no answer stated before"
    stood = "right" if stated == solution else "wrong"
    if final is None:
        return f"{stood}, then no readable answer"
    if final == stated:
        return f"stays {stood}"
    if final == solution:
        return "wrong to right"
    return "right to wrong" if stood == "right" else "wrong to another wrong"


def stated_before(completion: str, reflection: Reflection, *, question: str, choices: Sequence[str]) -> str | None:
    """The letter that a thought stands at before its first reflection; None when it states none, or never reflects."""
    start, end = thought_span(completion)
    place = reflection.place(completion[start:end])
    if place is None:
        return None
    return stated_answer(completion[start : start + place], question=question, choices=choices)


def thought_span(completion: str) -> tuple[int, int]:
    """Where a completion's thought begins and ends, in characters.

    It begins after a ``<think>`` that the completion opens itself, else at its start, and ends at the first
    ``</think>`` or ``<answer>``, whichever comes first, else with the completion.
    """
    ends = [place for tag in ("</think>", "<answer>") if (place := completion.find(tag)) >= 0]
    end = min(ends, default=len(completion))
    opened = completion.find("<think>", 0, end)
    return (0 if opened < 0 else opened + len("<think>")), end


def _within(estimate: Estimate, least: float, most: float) -> Estimate:
    """The estimate with the ends of its interval no further than it can be."""
    if estimate.interval is None:
        return estimate
    low, high = max(least, estimate.interval.low), min(most, estimate.interval.high)
    return replace(estimate, interval=replace(estimate.interval, low=low, high=high))


def _ratio(numerator: float, denominator: float) -> float | None:
    # What is left of a weight after subtracting it from itself may be a rounding.
    return numerator / denominator if abs(denominator) > 1e-9 else None


def _jackknife(
    parts: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float | None], level: float
) -> Estimate:
    """A statistic of sums over prompts, with the interval that leaving out one prompt at a time gives.

    Source: Efron and Stein, Annals of Statistics 9 (1981), equation 1.5; t instead of the normal distribution.
    """
    total = [sum(column) for column in zip(*parts, strict=True)]
    value = statistic(total) if parts else None
    count = len(parts)
    if value is None or count < 2:
        return Estimate(value, None, count if value is not None else 0)
    without = [statistic([all_ - one for all_, one in zip(total, part, strict=True)]) for part in parts]
    known = [one for one in without if one is not None]
    if len(known) < count:  # one prompt alone carries it
        return Estimate(value, None, count)
    center = sum(known) / count
    variance = (count - 1) / count * sum((one - center) ** 2 for one in known)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * sqrt(variance)
    if half < 1e-12:
        return Estimate(value, None, count)
    return Estimate(value, Interval(value, value - half, value + half), count)
