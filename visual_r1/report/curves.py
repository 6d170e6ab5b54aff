"""Curves over seeds: the mean at each step, a band around it, and each seed's own line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from visual_r1.metrics.reflection import Reflection
from visual_r1.report.groups import Group
from visual_r1.report.rollouts import Sampled
from visual_r1.report.runs import Run
from visual_r1.statistics import curve_band, wilson

MAX_POINTS = 400
"""Of a curve; a longer one is averaged over neighbouring steps, or the file would grow with the run."""


MAX_PHRASES = 6
"""Of a keyword list, which may have sixty, with a chart of their own: those that were said most."""

PHRASE = "reflection/keyword/"
"""Stands before a phrase in the name of its curve."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity in a chart; of every run the same."""

    label: str
    """What tells it from the chart's other lines; empty where it is the only one."""
    probe: str | None = None
    """Its key among a run's curves, measured on the probe."""
    train: str | None = None
    """The same quantity on training rollouts."""
    dash: str = "solid"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a chart can show at a time."""

    label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart against optimizer steps."""

    key: str
    title: str
    unit: str
    """``%`` for shares, else what the axis counts."""
    note: str
    """How to read it, one sentence."""
    choices: tuple[Choice, ...]
    place: Literal["aha", "controls", "phrases"] = "controls"
    """The aha figure, what else could explain it, or single phrases."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Whose curve it is: a group of seeds, or one run that did not finish."""

    label: str
    runs: tuple[Run, ...]
    is_finished: bool = True


def entries_of(groups: Sequence[Group], unfinished: Iterable[Run]) -> tuple[Entry, ...]:
    """The groups, then each unfinished run by itself: an average over runs of unequal length would bend."""
    return (
        *(Entry(label=group.label, runs=group.runs) for group in groups),
        *(Entry(label=f"{run.label}, unfinished", runs=(run,), is_finished=False) for run in unfinished if run.rows),
    )


def charts_for(runs: Sequence[Run], keyword_lists: Iterable[str]) -> tuple[Chart, ...]:
    """The charts that these runs have a curve for."""
    present = {key for run in runs for row in run.rows for key in row}
    lists = list(keyword_lists)
    terms = sorted({key.split("/")[1] for key in present if key.startswith("rewards/") and key.endswith("/mean")})
    categories = sorted(key.removeprefix("probe/accuracy/") for key in present if key.startswith("probe/accuracy/"))
    charts = (*_aha(lists), *_controls(lists, terms, categories), *_phrases(runs))
    derived = {f"{source}list/{name}/{rate}" for name in lists for rate in _RATES for source in ("probe/", "")}
    return tuple(
        chart
        for chart in charts
        if any(
            key in present or key in derived
            for choice in chart.choices
            for line in choice.lines
            for key in (line.probe, line.train)
        )
    )


def _both(key: str, label: str = "", dash: str = "solid") -> Line:
    return Line(label=label, probe=f"probe/{key}", train=key, dash=dash)


def _only(key: str, label: str = "", dash: str = "solid") -> Line:
    return Line(label=label, train=key, dash=dash)


def _one(label: str, *lines: Line) -> Choice:
    return Choice(label=label, lines=lines)


def _by_list(lists: Sequence[str], key: str) -> tuple[Choice, ...]:
    return (
        _one("the run's own list", _both(f"reflection/{key}")),
        *(_one(f"list {name}", _both(f"list/{name}/{key}")) for name in lists),
    )


def _aha(lists: Sequence[str]) -> tuple[Chart, ...]:
    return (
        Chart(
            key="accuracy",
            title="Accuracy",
            unit="%",
            note="Dotted: answers that can be read. An unreadable answer is wrong, so accuracy may start below chance.",
            choices=(_one("", _both("accuracy"), _both("format/parse_rate", "readable", "dot")),),
            place="aha",
        ),
        Chart(
            key="length",
            title="Response length",
            unit="tokens",
            note="Mean tokens of a completion. A longer completion holds more of any phrase by chance.",
            choices=(_one("", _both("completions/mean_length")),),
            place="aha",
        ),
        Chart(
            key="reflection",
            title="Reflection",
            unit="%",
            note="Completions with at least one phrase of the keyword list. Untrained models reflect too: see step 0.",
            choices=_by_list(lists, "any_rate"),
            place="aha",
        ),
    )


def _controls(lists: Sequence[str], terms: Sequence[str], categories: Sequence[str]) -> tuple[Chart, ...]:
    return (
        Chart(
            key="per_1k",
            title="Reflection per 1,000 tokens",
            unit="phrases",
            note="If this stays flat while the rate rises, longer text alone explains the rise.",
            choices=_by_list(lists, "per_1k_tokens"),
        ),
        Chart(
            key="by_outcome",
            title="Reflection of right and of wrong completions",
            unit="%",
            note="Two lines that part say that reflection goes with being right or wrong, not that it causes it.",
            choices=(
                _one(
                    "the run's own list",
                    _both("reflection/any_rate_correct", "right"),
                    _both("reflection/any_rate_incorrect", "wrong", "dash"),
                ),
                *(
                    _one(
                        f"list {name}",
                        _both(f"list/{name}/any_rate_correct", "right"),
                        _both(f"list/{name}/any_rate_incorrect", "wrong", "dash"),
                    )
                    for name in lists
                ),
            ),
        ),
        Chart(
            key="parts",
            title="Length of thought and answer",
            unit="tokens",
            note="Whether the thought grows or the answer does.",
            choices=(
                _one("both", _both("length/thought/mean", "thought"), _both("length/answer/mean", "answer", "dash")),
                _one("thought", _both("length/thought/mean")),
                _one("answer", _both("length/answer/mean")),
            ),
        ),
        Chart(
            key="length_by_outcome",
            title="Length of right and of wrong completions",
            unit="tokens",
            note="If only wrong completions grow, length is no sign of better thought.",
            choices=(_one("", _both("length/correct/mean", "right"), _both("length/incorrect/mean", "wrong", "dash")),),
        ),
        Chart(
            key="entropy",
            title="Entropy",
            unit="nats per token",
            note="Of the policy's next token, in training. Towards 0 the samples of a group become equal.",
            choices=(_one("", _only("entropy")),),
        ),
        Chart(
            key="kl",
            title="KL to the reference policy",
            unit="nats per token",
            note="How far the policy has moved; measured only where beta is not 0.",
            choices=(_one("", _only("kl")),),
        ),
        Chart(
            key="clip",
            title="Clip ratio",
            unit="%",
            note="Tokens whose update was clipped; always 0 with one update a batch.",
            choices=(
                _one("either side", _only("clip_ratio/region_mean")),
                _one(
                    "low and high", _only("clip_ratio/low_mean", "low"), _only("clip_ratio/high_mean", "high", "dash")
                ),
            ),
        ),
        Chart(
            key="groups",
            title="Groups without a gradient",
            unit="%",
            note="A group whose rollouts all have the same reward teaches nothing: too easy or too hard.",
            choices=(
                _one("zero variance", _only("frac_reward_zero_std")),
                _one(
                    "all right, all wrong, mixed",
                    _only("groups/all_correct", "all right"),
                    _only("groups/all_wrong", "all wrong", "dash"),
                    _only("groups/mixed", "mixed", "dot"),
                ),
            ),
        ),
        Chart(
            key="format",
            title="Format and truncation",
            unit="%",
            note="Well-formed completions, empty thoughts, and completions that the length limit cut.",
            choices=(
                _one("well formed", _both("format/well_formed_rate")),
                _one(
                    "cut at the limit",
                    Line(label="", probe="probe/format/truncated_rate", train="completions/clipped_ratio"),
                ),
                _one("empty thought", _both("format/empty_thought_rate")),
            ),
        ),
        Chart(
            key="repetition",
            title="Repetition",
            unit="%",
            note="How much of a completion repeats what it has said; dashed, completions that repeat more than half. "
            "If this rises with the length, the longer text says nothing new.",
            choices=(
                _one("", _both("repetition/repeated_rate"), _both("repetition/looping_rate", "more than half", "dash")),
            ),
        ),
        Chart(
            key="rewards",
            title="Reward",
            unit="score",
            note="The weighted sum that is trained on, and each term before its weight.",
            choices=(
                _one("sum", _only("reward")),
                *(_one(f"term {term}", _both(f"rewards/{term}/mean")) for term in terms),
            ),
        ),
        Chart(
            key="categories",
            title="Accuracy by category",
            unit="%",
            note="On the probe, or on the training rollouts of that category.",
            choices=tuple(_one(category, _both(f"accuracy/{category}")) for category in categories)
            or (_one("", Line(label="")),),
        ),
        Chart(
            key="parity",
            title="Engine against trainer",
            unit="nats",
            note="Difference of their log-probs for the same tokens: what is sampled is what is trained, if near 0.",
            choices=(
                _one("mean", _only("parity/logp_difference/mean")),
                _one("largest", _only("parity/logp_difference/max")),
            ),
        ),
        Chart(
            key="time",
            title="Time of a step",
            unit="seconds",
            note="One optimizer step, and its parts.",
            choices=(
                _one("step", _only("step_time")),
                _one("rollout", _only("time/rollout")),
                _one("scores and log-probs", _only("time/score_and_logps")),
                _one("update", _only("time/update")),
            ),
        ),
        Chart(
            key="optimisation",
            title="Optimisation",
            unit="",
            note="Loss, gradient norm and learning rate. The loss of GRPO is no measure of progress.",
            choices=(
                _one("loss", _only("loss")),
                _one("gradient norm", _only("grad_norm")),
                _one("learning rate", _only("learning_rate")),
            ),
        ),
    )


def phrases_said(runs: Iterable[Run]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The phrases that some completion holds, those of the highest share first; and those that were never said."""
    most: dict[str, float] = {}
    for run in runs:
        for row in run.rows:
            for key, value in row.items():
                _, is_phrase, phrase = key.partition(PHRASE)
                if is_phrase:
                    most[phrase] = max(value, most.get(phrase, 0.0))
    ordered = sorted(most, key=lambda phrase: (-most[phrase], phrase))
    return tuple(one for one in ordered if most[one] > 0), tuple(one for one in ordered if not most[one] > 0)


def _phrases(runs: Sequence[Run]) -> Iterator[Chart]:
    """A chart of each of the phrases that were said most."""
    for number, phrase in enumerate(phrases_said(runs)[0][:MAX_PHRASES]):
        yield Chart(
            key=f"phrase-{number}",
            title=f"“{phrase.replace('_', ' ')}”",
            unit="%",
            note="",
            choices=(_one("", _both(f"{PHRASE}{phrase}")),),
            place="phrases",
        )


_RATES = ("any_rate", "any_rate_correct", "any_rate_incorrect", "per_1k_tokens")


def by_keyword_list(
    sampled: Sequence[Sampled], keyword_lists: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[int, float]]]:
    """Reflection as other keyword lists count it, from the rollouts on record: key to steps and values."""
    counters = {name: Reflection(phrases=tuple(phrases)) for name, phrases in keyword_lists.items()}
    found: dict[str, list[tuple[int, float]]] = {}
    for source, prefix in (("probe", "probe/"), ("train", "")):
        for step in sampled:
            rows = step.of(source)
            if not rows:
                continue
            for name, reflection in counters.items():
                hits = [len(reflection.find(row["completion"])) for row in rows]
                samples = {
                    "any_rate": [bool(hit) for hit in hits],
                    "any_rate_correct": [bool(hit) for hit, row in zip(hits, rows, strict=True) if row["correct"]],
                    "any_rate_incorrect": [bool(h) for h, row in zip(hits, rows, strict=True) if not row["correct"]],
                }
                values = {key: fmean(sample) for key, sample in samples.items() if sample}
                if num_tokens := sum(row["num_tokens"] for row in rows):
                    values["per_1k_tokens"] = 1000 * sum(hits) / num_tokens
                for key, value in values.items():
                    found.setdefault(f"{prefix}list/{name}/{key}", []).append((step.step, value))
    return found


def curve_over_seeds(
    lines: Sequence[Sequence[tuple[int, float]]], *, is_share: bool = False, num_items: int | None = None
) -> dict[str, Any] | None:
    """One curve for the page: ``steps``, ``mean``, ``low``, ``high``, ``seeds``, ``band``; None without a value.

    Args:
        lines: steps and values, one sequence a seed; seeds without any are passed as empty.
        is_share: the values are in [0, 1], and the band is cut off there.
        num_items: of a share, the examples behind each value: with a single seed the band is over them.

    The mean is over the seeds that measured a step. The band is a 95 % t-interval over seeds, where two or more did.
    """
    by_seed = [dict(line) for line in lines]
    steps = sorted({step for one in by_seed for step in one})
    if not steps:
        return None
    width = -(-len(steps) // MAX_POINTS)
    if width > 1:
        buckets = [steps[start : start + width] for start in range(0, len(steps), width)]
        by_seed = [
            {
                bucket[-1]: fmean(values)
                for bucket in buckets
                if (values := [one[step] for step in bucket if step in one])
            }
            for one in by_seed
        ]
        steps = [bucket[-1] for bucket in buckets]
    seeds = [[one.get(step) for step in steps] for one in by_seed if one]
    means: list[float | None] = [None] * len(steps)
    lows: list[float | None] = [None] * len(steps)
    highs: list[float | None] = [None] * len(steps)
    patterns: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(steps)):
        patterns.setdefault(tuple(i for i, seed in enumerate(seeds) if seed[index] is not None), []).append(index)
    for who, indices in patterns.items():
        values = [[float(seeds[seed][index] or 0.0) for index in indices] for seed in who]
        bands = curve_band(values) if len(who) > 1 else None
        for place, index in enumerate(indices):
            means[index] = fmean(row[place] for row in values) if values else None
            if bands is not None:
                low, high = bands[place].low, bands[place].high
                lows[index], highs[index] = (max(0.0, low), min(1.0, high)) if is_share else (low, high)
            elif num_items and len(seeds) == 1 and values and 0 <= values[0][place] <= 1:  # a damaged record may not be
                interval = wilson(round(values[0][place] * num_items), num_items)
                lows[index], highs[index] = interval.low, interval.high
    band = "seeds" if len(seeds) > 1 else ("items" if num_items else "")
    return {
        "steps": steps,
        "mean": [_short(value) for value in means],
        **({"low": [_short(v) for v in lows], "high": [_short(v) for v in highs]} if band else {}),
        **({"seeds": [[_short(value) for value in seed] for seed in seeds]} if len(seeds) > 1 else {}),
        "band": band,
        "width": width,
    }


def _short(value: float | None) -> float | None:
    """Four digits: what a chart can show."""
    return None if value is None else float(f"{value:.4g}")
