"""A policy on a benchmark becomes a report: accuracy, and beside it everything without which accuracy means nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from statistics import fmean
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm.auto import tqdm

from visual_r1.examples import Example, Rollout
from visual_r1.metrics.reflection import Reflection
from visual_r1.parsing import is_correct, is_well_formed, named_letter
from visual_r1.rollout.engine import RolloutEngine, Sampling
from visual_r1.rollout.sharing import sample_together
from visual_r1.scoring.scorer import Scorer
from visual_r1.scoring.strict import Strict
from visual_r1.statistics import Interval, Stratum, weighted_wilson, wilson

if TYPE_CHECKING:
    from visual_r1.models import Policy

_GREY = (128, 128, 128)
_STRICT = Strict()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a policy did on a benchmark: one rollout an item, and the same responses by every scorer."""

    benchmark: str
    rollouts: tuple[Rollout, ...]
    blank_rollouts: tuple[Rollout, ...] = ()
    """The same items with every image painted grey: what the words alone are worth. Empty where nobody asked."""
    rotated_rollouts: tuple[Rollout, ...] = ()
    """The same items with their choices in another order. Empty where nobody asked."""
    reflection: Reflection
    scorers: Mapping[str, Scorer] = field(default_factory=lambda: {"strict": _STRICT})
    """By name; the headline's ``strict`` among them (`with_strict`)."""
    knows_lengths: bool = True
    """The rollouts say how long they are and whether they were cut; responses made elsewhere may not."""

    def summary(self) -> dict[str, Any]:
        """Accuracy with its interval, its baselines and the rates that explain it, overall and by category.

        The keys at the top are the strict rule's. ``scorers`` holds each scorer's verdict on the same responses, by
        category too; where a scorer cannot average these items, its numbers are None and ``problem`` says why.
        """
        return {
            "benchmark": self.benchmark,
            **self._measure(),
            "by_category": {name: part._measure() for name, part in self._by_category().items()},
            "scorers": {name: self._by_scorer(scorer) for name, scorer in self.scorers.items()},
        }

    def items(self) -> list[dict[str, Any]]:
        """One row an item, for ``evaluation.parquet``; its columns hold all that scoring it again needs."""
        rows = []
        for rollout in self.rollouts:
            example = rollout.example
            rows.append(
                {
                    "example_id": example.id,
                    "category": example.category,
                    "subset": example.subset,
                    "question": example.question,
                    "choices": list(example.choices),
                    "solution": example.solution,
                    "choice": named_letter(rollout),
                    "correct": is_correct(rollout),
                    **{f"correct_{name}": score(rollout) for name, score in self.scorers.items() if name != "strict"},
                    "completion": rollout.completion,
                    "prompt_opens_think": rollout.prompt_opens_think,
                    "num_tokens": rollout.num_tokens,
                    "is_truncated": rollout.is_truncated,
                    "well_formed": is_well_formed(rollout.text) and not rollout.is_truncated,
                    "reflection": list(self.reflection.find(rollout.completion)),
                }
            )
        for row, blank in zip(rows, self.blank_rollouts, strict=False):
            row |= {
                "blank_choice": named_letter(blank),
                "blank_correct": is_correct(blank),
                "blank_completion": blank.completion,
            }
        for row, rotated in zip(rows, self.rotated_rollouts, strict=False):
            row |= {
                "rotated_choices": list(rotated.example.choices),
                "rotated_choice": named_letter(rotated),
                "rotated_correct": is_correct(rotated),
                "rotated_completion": rotated.completion,
            }
        return rows

    def _measure(self) -> dict[str, Any]:
        """The headline: the strict rule, and what concerns the responses themselves."""
        rollouts = self.rollouts
        reflecting = _share(bool(self.reflection.find(rollout.completion)) for rollout in rollouts)
        return {
            "num_items": len(rollouts),
            **self._scored(_STRICT),
            "well_formed_rate": fmean(
                is_well_formed(rollout.text) and not rollout.is_truncated for rollout in rollouts
            ),
            "length": fmean(rollout.num_tokens for rollout in rollouts) if self.knows_lengths else None,
            **_with_interval("reflection", reflecting),
            **self._option_swap(),
        }

    def _by_scorer(self, scorer: Scorer) -> dict[str, Any]:
        if problem := scorer.problem([rollout.example for rollout in self.rollouts]):
            return {"accuracy": None, "problem": problem}
        groups = {
            name: part
            for name, subsets in scorer.groups.items()
            if (part := self._only(lambda example, subsets=subsets: example.subset in subsets)).rollouts
        }
        return {
            **self._scored(scorer),
            "by_category": {name: part._scored(scorer) for name, part in self._by_category().items()},
            "by_group": {name: part._scored(scorer) for name, part in groups.items()},
        }

    def _scored(self, scorer: Scorer) -> dict[str, Any]:
        """A scorer's verdicts on these items; accuracies and their baselines are averaged as the scorer does."""
        examples = [rollout.example for rollout in self.rollouts]
        parts = scorer.parts(examples)
        # As fractions, so that a sum over all items is no other number than a count over all items.
        weights = {index: Fraction(part.weight) / len(part.indices) for part in parts for index in part.indices}

        def accuracy(rollouts: Sequence[Rollout]) -> Interval:
            verdicts = [scorer(rollout) for rollout in rollouts]
            counts = (sum(verdicts[index] for index in part.indices) for part in parts)
            return weighted_wilson(
                [Stratum(part.weight, right, len(part.indices)) for part, right in zip(parts, counts, strict=True)]
            )

        return {
            **_with_interval("accuracy", accuracy(self.rollouts)),
            "chance": sum(
                part.weight * fmean(1 / len(examples[index].choices) for index in part.indices) for part in parts
            ),
            "majority": _majority(examples, weights),
            **_with_interval("blank_accuracy", accuracy(self.blank_rollouts) if self.blank_rollouts else None),
            "parse_rate": fmean(scorer.is_read(rollout) for rollout in self.rollouts),
            "truncated_rate": fmean(rollout.is_truncated for rollout in self.rollouts) if self.knows_lengths else None,
        }

    def _option_swap(self) -> dict[str, Any]:
        """How often the same words were chosen in both orders, and how often the right ones; empty if nobody asked.

        An answer that cannot be read chose no words, so such an item is not consistent.
        """
        if not self.rotated_rollouts:
            return {}
        pairs = list(zip(self.rollouts, self.rotated_rollouts, strict=True))
        same = _share(_chosen_words(one) is not None and _chosen_words(one) == _chosen_words(two) for one, two in pairs)
        right = _share(is_correct(one) and is_correct(two) for one, two in pairs)
        return {**_with_interval("swap_consistency", same), **_with_interval("both_orders_accuracy", right)}

    def _by_category(self) -> dict[str, Report]:
        names = dict.fromkeys(rollout.example.category for rollout in self.rollouts)
        return {name: self._only(lambda example, name=name: example.category == name) for name in names}

    def _only(self, wanted: Callable[[Example], bool]) -> Report:
        kept = [index for index, rollout in enumerate(self.rollouts) if wanted(rollout.example)]
        return replace(
            self,
            **{
                name: tuple(rollouts[index] for index in kept) if (rollouts := getattr(self, name)) else ()
                for name in ("rollouts", "blank_rollouts", "rotated_rollouts")
            },
        )


def with_strict(scorers: Mapping[str, Scorer]) -> dict[str, Scorer]:
    """The scorers by name, ``strict`` first whether it was named or not: it is the headline.

    Raises:
        ValueError: another rule is called ``strict``.
    """
    strict = scorers.get("strict", _STRICT)
    if type(strict) is not Strict:
        raise ValueError(
            f"benchmark.scorers.strict={type(strict).__name__}: the headline's rule is Strict; choose another name"
        )
    return {"strict": strict, **scorers}


def check_scoring(examples: Sequence[Example], *, scorers: Mapping[str, Scorer], option_swap: bool) -> None:
    """Refuses at the start what would fail at the end.

    Raises:
        ValueError: as `with_strict`, or the choices of these examples cannot be put in another order.
    """
    with_strict(scorers)
    if option_swap:
        _rotated(examples)


def evaluate(
    policy: Policy,
    engine: RolloutEngine,
    examples: Sequence[Example],
    *,
    benchmark: str,
    sampling: Sampling,
    reflection: Reflection,
    scorers: Mapping[str, Scorer] | None = None,
    option_swap: bool = False,
    seed: int = 0,
    description: str = "",
) -> Report:
    """Asks every question with its image and with a blank one; shows a progress bar under `description`.

    Of several processes all call this together and share the questions; rank 0 has the report, and the others one
    without rollouts, which has no summary.

    Args:
        policy: who is asked.
        engine: what samples.
        examples: the questions.
        benchmark: its name.
        sampling: how the answers are drawn.
        reflection: what counts as reflection.
        scorers: by name; all judge the same responses. The strict one is always there.
        option_swap: ask once more with every question's choices moved on by one place.
        seed: of the sampling; the image, the blank and the other order draw alike.
        description: what the bar says; the benchmark's name if empty.

    Raises:
        ValueError: as `check_scoring`.
    """
    named = with_strict(scorers or {})
    rotated = _rotated(examples) if option_swap else None
    with tqdm(total=(3 if option_swap else 2) * len(examples), desc=description or benchmark, unit="item") as bar:

        def answers(examples: Sequence[Example]) -> tuple[Rollout, ...]:
            end = bar.n + len(examples)
            rollouts = sample_together(
                engine,
                policy,
                examples,
                sampling=sampling,
                seed=seed,
                progress=lambda count: bar.update(min(count, end - bar.n)),
            )
            bar.update(end - bar.n)
            return tuple(rollouts)

        return Report(
            benchmark=benchmark,
            rollouts=answers(examples),
            blank_rollouts=answers(BlankImages(examples)),
            rotated_rollouts=answers(rotated) if rotated is not None else (),
            reflection=reflection,
            scorers=named,
        )


class BlankImages(Sequence[Example]):
    """The same questions over grey images of the same sizes, each made when it is read."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        taken = self._examples[index]
        return [with_blank_images(one) for one in taken] if isinstance(index, slice) else with_blank_images(taken)


def with_blank_images(example: Example) -> Example:
    """The same question over grey images of the same sizes."""
    return replace(example, images=tuple(Image.new("RGB", image.size, _GREY) for image in example.images))


def summarise(before: Mapping[str, Any] | None, after: Mapping[str, Any], **run: Any) -> dict[str, Any]:
    """The contents of ``summary.json``: the reports before and after, and the facts of the run.

    Args:
        before: the starting point's `Report.summary`; None where nothing was trained.
        after: the trained policy's.
        run: name, seed, steps, wall_seconds, commit...
    """
    reports = {"after": after} if before is None else {"before": before, "after": after}
    shared = ("benchmark", "num_items", "chance", "majority")
    flat = {
        f"{key.removesuffix('_interval')}_{when}{'_interval' if key.endswith('_interval') else ''}": value
        for when, report in reports.items()
        for key, value in report.items()
        if key not in (*shared, "by_category", "scorers")
    }
    nested = {
        key: {name: {when: report[key][name] for when, report in reports.items()} for name in after[key]}
        for key in ("by_category", "scorers")
    }
    return {**run, **{key: after[key] for key in shared}, **flat, **nested}


def _rotated(examples: Sequence[Example]) -> Sequence[Example]:
    """The same questions with their choices moved on by one place."""
    rotated = getattr(examples, "rotated", None)
    if rotated is None:
        raise ValueError(
            f"benchmark.option_swap=true: {type(examples).__name__} cannot put its choices in another order "
            "(it has no rotated()); set benchmark.option_swap=false"
        )
    return rotated(1)


def _majority(examples: Sequence[Example], weights: Mapping[int, Fraction]) -> float:
    """Accuracy of always giving, in each category, the letter or the words that are most often right there."""
    right: dict[str, dict[tuple[str, str], Fraction]] = {}
    for index, weight in weights.items():
        example = examples[index]
        constants = right.setdefault(example.category, defaultdict(Fraction))
        constants["letter", example.solution] += weight
        constants["words", example.solution_text.casefold()] += weight
    return float(sum(max(constants.values()) for constants in right.values()))


def _chosen_words(rollout: Rollout) -> str | None:
    letter = named_letter(rollout)
    return None if letter is None else rollout.example.choices[rollout.example.letters.index(letter)]


def _share(outcomes: Iterable[bool]) -> Interval:
    counted = list(outcomes)
    return wilson(sum(counted), len(counted))


def _with_interval(name: str, interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {name: None, f"{name}_interval": None}
    return {name: interval.estimate, f"{name}_interval": [interval.low, interval.high]}
