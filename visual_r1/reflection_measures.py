"""From rollouts to numbers about reflection: those that a run has saved, and those that a probe has sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from visual_r1 import interventions
from visual_r1.datasets.layouts import listed_choices
from visual_r1.errors import first_line
from visual_r1.metrics.reflection import Reflection
from visual_r1.metrics.reflection_effect import (
    FLIPS,
    Estimate,
    Outcome,
    effect_within_prompt,
    flip,
    gap,
    ratio,
    share,
    stated_before,
    thought_span,
)
from visual_r1.parsing import is_correct, named_letter
from visual_r1.reflection_record import Measurement, ends
from visual_r1.run_folder import RunFolder
from visual_r1.statistics import Interval, mcnemar, paired_difference, wilson

if TYPE_CHECKING:
    from visual_r1.interventions import Probed, Trial

_COLUMNS = (
    *("source", "example_id", "question", "completion", "solution", "choice", "correct", "num_tokens", "is_truncated"),
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A completion that was left to end by itself, as far as these measures need it."""

    visit: int
    """Optimizer steps before it was sampled."""
    prompt: str
    question: str
    choices: tuple[str, ...] | None
    """None where the question lists none that can be read."""
    completion: str
    solution: str
    choice: str | None
    correct: bool
    num_tokens: int
    is_truncated: bool


def read_saved(folder: RunFolder) -> tuple[dict[str, list[Written]], list[str]]:
    """The rollouts of ``completions/`` by their source, "train" and "probe", and what had to be left out, a line each.

    A training rollout of step k was drawn after k - 1 updates, one of the probe after k.
    """
    import pyarrow
    import pyarrow.parquet

    found: dict[str, list[Written]] = {}
    left_out = []
    files = sorted(folder.completions.glob("step_*.parquet"))
    if not files:
        left_out.append(f"saved rollouts: {folder.completions} holds none")
    for file in files:
        try:
            columns = set(pyarrow.parquet.read_schema(file).names)
            if missing := [name for name in _COLUMNS if name not in columns]:
                left_out.append(f"{file}: has no column {', '.join(missing)}: written by another version")
                continue
            rows = pyarrow.parquet.read_table(file, columns=list(_COLUMNS)).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            left_out.append(f"{file}: cannot be read ({first_line(error)})")
            continue
        step = int(file.stem.removeprefix("step_"))
        for row in rows:
            found.setdefault(row["source"], []).append(
                Written(
                    visit=step - (row["source"] == "train"),
                    prompt=row["example_id"],
                    choices=_choices(row["question"]),
                    **{name: row[name] for name in _COLUMNS if name not in ("source", "example_id")},
                )
            )
    return found, left_out


@lru_cache(maxsize=8192)
def _choices(question: str) -> tuple[str, ...] | None:
    try:
        return listed_choices(question)
    except ValueError:
        return None


def of_saved(
    written: Mapping[str, Sequence[Written]], lists: Mapping[str, Reflection], *, level: float
) -> list[Measurement]:
    """By source and keyword list: at each step, and over all steps."""
    measured = []
    for source, rollouts in written.items():
        steps = sorted({one.visit for one in rollouts})
        for name, reflection in lists.items():
            for step in (*steps, None):
                these = [one for one in rollouts if step in (None, one.visit)]
                model = "all steps" if step is None else f"step {step}"
                row = partial(Measurement, model=model, source=f"saved {source}", step=step, keywords=name)
                measured += _of_written(these, reflection, row, level=level)
    return measured


def of_probed(
    probed: Probed,
    lists: Mapping[str, Reflection],
    *,
    model: str,
    step: int | None,
    keywords: str,
    fractions: Sequence[float],
    level: float,
) -> list[Measurement]:
    """What one policy did: undisturbed, by every list; under the conditions, by the run's own."""
    written = [
        Written(
            visit=0,
            prompt=one.rollout.example.id,
            question=one.rollout.example.question,
            choices=one.rollout.example.choices,
            completion=one.rollout.completion,
            solution=one.rollout.example.solution,
            choice=named_letter(one.rollout),
            correct=is_correct(one.rollout),
            num_tokens=one.rollout.num_tokens,
            is_truncated=one.rollout.is_truncated,
        )
        for one in probed.completed
    ]
    common = partial(Measurement, model=model, source="probe", step=step)
    measured = [
        measurement
        for name, reflection in lists.items()
        for measurement in _of_written(written, reflection, partial(common, keywords=name), level=level)
    ]
    asked = {one.prompt: one for one in written}.values()
    measured.append(
        common(
            section="rates",
            measure="accuracy",
            condition="guessing at random",
            estimate=fmean(1 / len(one.choices) for one in asked if one.choices),
            interval=None,
            n=len(asked),
            n_counts="items",
            unit="share",
        )
    )
    trials = _by_condition(probed)
    row = partial(common, keywords=keywords)
    names = interventions
    parts = [names.after(fraction) for fraction in fractions[:-1]]
    grey = [names.removed(fraction) for fraction in fractions[1:]]
    for section, conditions, differences in (
        ("cut", (names.CUT, names.WHOLE_REFLECTING), [(names.WHOLE_REFLECTING, names.CUT)]),
        (
            "forced",
            (names.WHOLE_UNREFLECTING, names.FORCED, names.EMPTY),
            [
                (names.FORCED, names.WHOLE_UNREFLECTING),
                (names.EMPTY, names.WHOLE_UNREFLECTING),
                (names.FORCED, names.EMPTY),
            ],
        ),
        ("early", (*parts, names.WHOLE), [(names.WHOLE, part) for part in parts]),
        (
            "image",
            (names.WHOLE, names.BLANK, names.SHUFFLED, *grey),
            [(names.WHOLE, other) for other in (names.BLANK, names.SHUFFLED, *grey)],
        ),
    ):
        here = partial(row, section=section)
        for condition in conditions:
            measured += _of_condition(trials.get(condition, {}), condition, here, level=level)
        for one, other in differences:
            measured += _of_pair(trials.get(one, {}), trials.get(other, {}), one, other, here, level=level)
    measured += _asked_flips(trials, partial(row, section="flips"), level=level)
    return measured


def of_change(
    first: Probed, later: Probed, *, model: str, step: int | None, keywords: str, level: float
) -> list[Measurement]:
    """How much more something does in a later policy than in the first, on the items in which both have it.

    Which items have a completion that reflects, or one that does not, changes with the policy; a difference over all
    items that each has would be one of items, too.
    """
    trials = [_by_condition(probed) for probed in (first, later)]
    measured = []
    for section, one, other in (
        ("cut", interventions.WHOLE_REFLECTING, interventions.CUT),
        ("forced", interventions.FORCED, interventions.WHOLE_UNREFLECTING),
        ("early", interventions.WHOLE, None),
    ):
        before, after = (
            {
                item: trial.correct - (other is not None and each[other][item].correct)
                for item, trial in each.get(one, {}).items()
            }
            for each in trials
        )
        row = partial(
            Measurement,
            section=section,
            condition=one if other is None else f"{one} - {other}",
            against="the same at step 0",
            model=model,
            source="probe",
            step=step,
            keywords=keywords,
        )
        measured += _difference(after, before, row, are_verdicts=other is None, level=level)
    return measured


def _by_condition(probed: Probed) -> dict[str, dict[str, Trial]]:
    """The trials by condition and item."""
    trials: dict[str, dict[str, Trial]] = {}
    for trial in probed.trials:
        trials.setdefault(trial.condition, {})[trial.example_id] = trial
    return trials


def _of_written(
    written: Sequence[Written], reflection: Reflection, row: partial[Measurement], *, level: float
) -> list[Measurement]:
    """Rates, the effect within a prompt, and flips, of completions that ended by themselves."""
    hits = [len(reflection.find(one.completion)) for one in written]
    pairs = list(zip(written, hits, strict=True))
    everything = "all completions"
    rates = partial(row, section="rates", condition=everything, n=len(written), n_counts="rollouts")
    shares = {
        "reflection_rate": [count > 0 for count in hits],
        "accuracy": [one.correct for one in written],
        "readable_rate": [one.choice is not None for one in written],
        "truncated_rate": [one.is_truncated for one in written],
    }
    ratios = {
        "reflection_per_1k_tokens": ("per_1k_tokens", [(1000 * count, one.num_tokens) for one, count in pairs]),
        "num_tokens": ("tokens", [(one.num_tokens, 1) for one in written]),
    }
    prompts = [one.prompt for one in written]
    measured = [
        _from(rates, name, share(zip(prompts, values, strict=True), level=level), "share")
        for name, values in shares.items()
    ]
    measured += [
        _from(rates, name, ratio(((p, *two) for p, two in zip(prompts, values, strict=True)), level=level), unit)
        for name, (unit, values) in ratios.items()
    ]
    for suffix, kept in (("", written), (", answer readable", [one for one in written if one.choice is not None])):
        outcomes = [
            Outcome(prompt=one.prompt, visit=one.visit, reflects=_reflects(one, reflection), is_right=one.correct)
            for one in kept
        ]
        between = partial(row, section="within_prompt", condition=f"reflects{suffix}", against="does not reflect")
        for measure, estimate in (
            ("effect_within_prompt", effect_within_prompt(outcomes, level=level)),
            ("gap_over_all_prompts", gap(outcomes, level=level)),
        ):
            if estimate.value is not None:
                counted = partial(between, n=estimate.num_prompts, n_counts="prompts")
                measured.append(_from(counted, measure, estimate, "difference"))
    return measured + _flips(written, reflection, partial(row, section="flips"), level=level)


def _reflects(one: Written, reflection: Reflection) -> bool:
    """Whether a phrase stands in the thought: one that comes after the answer cannot have made it right."""
    start, end = thought_span(one.completion)
    return reflection.place(one.completion[start:end]) is not None


def _flips(
    written: Sequence[Written], reflection: Reflection, row: partial[Measurement], *, level: float
) -> list[Measurement]:
    """What became of the answer that stood before the first reflection, by the rule of `stated_answer`."""
    found = []
    for one in written:
        if one.choices is None or not _reflects(one, reflection):
            continue
        stated = stated_before(one.completion, reflection, question=one.question, choices=one.choices)
        found.append((one, stated, flip(stated, one.choice, solution=one.solution)))
    if not found:
        return []
    counted = partial(row, n=len(found), n_counts="rollouts")
    measured = [
        _from(
            partial(counted, condition=kind),
            "flip_share",
            share(((one.prompt, becomes == kind) for one, _, becomes in found), level=level),
            "share",
        )
        for kind in FLIPS
    ]
    stating = [(one, stated) for one, stated, _ in found if stated is not None]
    for condition, compared in (
        ("final answer", stating),
        ("final answer, readable", [(one, stated) for one, stated in stating if one.choice is not None]),
    ):
        if compared:
            gains = ((one.prompt, one.correct - (stated == one.solution), 1.0) for one, stated in compared)
            here = partial(row, condition=condition, against="answer stated before", n=len(compared))
            gain = ratio(gains, level=level)
            measured.append(_from(partial(here, n_counts="rollouts"), "flip_accuracy_gain", gain, "difference"))
    return measured


def _asked_flips(
    trials: Mapping[str, Mapping[str, Trial]], row: partial[Measurement], *, level: float
) -> list[Measurement]:
    """The same without a rule: the answer that the policy gives when it is stopped before its first reflection."""
    before, whole = (trials.get(name, {}) for name in (interventions.CUT, interventions.WHOLE_REFLECTING))
    kinds = [
        flip(one.choice, whole[item].choice, solution=one.solution) for item, one in before.items() if item in whole
    ]
    counts = Counter(kinds)
    return [
        _proportion(
            partial(row, condition=f"asked: {kind.replace('answer stated', 'readable answer')}", n_counts="items"),
            "flip_share",
            counts[kind],
            len(kinds),
            level,
        )
        for kind in FLIPS
        if kinds
    ]


def _of_condition(
    trials: Mapping[str, Trial], condition: str, row: partial[Measurement], *, level: float
) -> list[Measurement]:
    if not trials:
        return []
    here = partial(row, condition=condition, n_counts="items")
    answers = list(trials.values())
    return [
        _proportion(here, "accuracy", sum(one.correct for one in answers), len(answers), level),
        _proportion(here, "readable_rate", sum(one.choice is not None for one in answers), len(answers), level),
        here(
            measure="num_thought_tokens",
            estimate=fmean(one.num_thought_tokens for one in answers),
            interval=None,
            n=len(answers),
            unit="tokens",
        ),
    ]


def _of_pair(
    ones: Mapping[str, Trial],
    others: Mapping[str, Trial],
    condition: str,
    against: str,
    row: partial[Measurement],
    *,
    level: float,
) -> list[Measurement]:
    """One condition minus another on the items that both have."""
    one, other = ({item: int(trial.correct) for item, trial in trials.items()} for trials in (ones, others))
    here = partial(row, condition=condition, against=against)
    return _difference(one, other, here, are_verdicts=True, level=level)


def _difference(
    ones: Mapping[str, int],
    others: Mapping[str, int],
    row: partial[Measurement],
    *,
    are_verdicts: bool,
    level: float,
) -> list[Measurement]:
    """What items are worth on one side minus on the other, on those that both have; verdicts are right or wrong."""
    shared = [item for item in ones if item in others]
    if not shared:
        return []
    one, other = ([values[item] for item in shared] for values in (ones, others))
    # Where all items agree, a bootstrap has no width, which would claim certainty.
    varies = len({first - second for first, second in zip(one, other, strict=True)}) > 1
    return [
        row(
            measure="accuracy",
            estimate=fmean(one) - fmean(other),
            interval=ends(paired_difference(one, other, level=level)) if varies else None,
            n=len(shared),
            n_counts="items",
            unit="difference",
            p=mcnemar(one, other) if are_verdicts else None,
        )
    ]


def _from(row: partial[Measurement], measure: str, estimate: Estimate, unit: str) -> Measurement:
    return row(measure=measure, estimate=estimate.value, interval=ends(estimate.interval), unit=unit)


def _proportion(row: partial[Measurement], measure: str, successes: int, n: int, level: float) -> Measurement:
    interval: Interval = wilson(successes, n, level)
    return row(measure=measure, estimate=interval.estimate, interval=ends(interval), n=n, unit="share")


def trial_rows(probed: Probed, *, model: str) -> list[dict[str, Any]]:
    """An item and a condition a row, undisturbed completions among them, for ``reflection.parquet``."""
    rows: list[dict[str, Any]] = [
        {
            "model": model,
            "condition": "undisturbed",
            "example_id": one.rollout.example.id,
            "category": one.rollout.example.category,
            "question": one.rollout.example.question,
            "choices": list(one.rollout.example.choices),
            "solution": one.rollout.example.solution,
            "generation": one.generation,
            "thought": one.rollout.completion,
            "num_thought_tokens": one.end - one.begin,
            "answer": None,
            "choice": named_letter(one.rollout),
            "correct": is_correct(one.rollout),
            "reflects": one.marker is not None,
            "num_tokens": one.rollout.num_tokens,
            "is_truncated": one.rollout.is_truncated,
        }
        for one in probed.completed
    ]
    rows += [
        {
            "model": model,
            **{name: getattr(trial, name) for name in trial.__dataclass_fields__ if name != "choices"},
            "choices": list(trial.choices),
            "num_tokens": None,
            "is_truncated": None,
        }
        for trial in probed.trials
    ]
    return rows


def schema() -> Any:
    """Column names and types of ``reflection.parquet``."""
    import pyarrow

    text, number, flag = pyarrow.string(), pyarrow.int32(), pyarrow.bool_()
    return pyarrow.schema(
        [
            *((name, text) for name in ("model", "condition", "example_id", "category", "question")),
            ("choices", pyarrow.list_(text)),
            ("solution", text),
            ("generation", number),
            ("thought", text),
            ("num_thought_tokens", number),
            ("answer", text),
            ("choice", text),
            ("correct", flag),
            ("reflects", flag),
            ("num_tokens", number),
            ("is_truncated", flag),
        ]
    )
