"""A policy on a benchmark becomes a report: accuracy, and beside it everything without which accuracy means nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from visual_r1.examples import Example, Rollout
from visual_r1.metrics.reflection import Reflection
from visual_r1.models import Policy
from visual_r1.parsing import is_correct, is_well_formed, named_letter
from visual_r1.rollout.engine import RolloutEngine, Sampling, sample
from visual_r1.statistics import wilson

_GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a policy did on a benchmark: one rollout an item, with the image and with a blank in its place."""

    benchmark: str
    rollouts: tuple[Rollout, ...]
    blank_rollouts: tuple[Rollout, ...]
    """The same items with every image painted grey: what the words alone are worth."""
    reflection: Reflection

    def summary(self) -> dict[str, Any]:
        """Accuracy with its interval, its baselines and the rates that explain it, overall and by category."""
        categories = list(dict.fromkeys(rollout.example.category for rollout in self.rollouts))
        return {
            "benchmark": self.benchmark,
            **self._measure(self.rollouts, self.blank_rollouts),
            "by_category": {
                category: self._measure(
                    [rollout for rollout in self.rollouts if rollout.example.category == category],
                    [rollout for rollout in self.blank_rollouts if rollout.example.category == category],
                )
                for category in categories
            },
        }

    def items(self) -> list[dict[str, Any]]:
        """One row an item, for ``evaluation.parquet``."""
        blanks = {rollout.example.id: rollout for rollout in self.blank_rollouts}
        return [
            {
                "example_id": rollout.example.id,
                "category": rollout.example.category,
                "question": rollout.example.question,
                "choices": list(rollout.example.choices),
                "solution": rollout.example.solution,
                "choice": named_letter(rollout),
                "correct": is_correct(rollout),
                "completion": rollout.completion,
                "num_tokens": rollout.num_tokens,
                "is_truncated": rollout.is_truncated,
                "well_formed": is_well_formed(rollout.text) and not rollout.is_truncated,
                "reflection": list(self.reflection.find(rollout.completion)),
                "blank_choice": named_letter(blanks[rollout.example.id]),
                "blank_correct": is_correct(blanks[rollout.example.id]),
            }
            for rollout in self.rollouts
        ]

    def _measure(self, rollouts: Sequence[Rollout], blanks: Sequence[Rollout]) -> dict[str, Any]:
        num_items = len(rollouts)
        accuracy = wilson(sum(map(is_correct, rollouts)), num_items)
        blank = wilson(sum(map(is_correct, blanks)), num_items)
        reflecting = wilson(sum(bool(self.reflection.find(rollout.completion)) for rollout in rollouts), num_items)
        return {
            "num_items": num_items,
            "accuracy": accuracy.estimate,
            "accuracy_interval": [accuracy.low, accuracy.high],
            "chance": fmean(1 / len(rollout.example.choices) for rollout in rollouts),
            "majority": _majority([rollout.example for rollout in rollouts]),
            "blank_accuracy": blank.estimate,
            "blank_accuracy_interval": [blank.low, blank.high],
            "parse_rate": fmean(named_letter(rollout) is not None for rollout in rollouts),
            "well_formed_rate": fmean(
                is_well_formed(rollout.text) and not rollout.is_truncated for rollout in rollouts
            ),
            "truncated_rate": fmean(rollout.is_truncated for rollout in rollouts),
            "length": fmean(rollout.num_tokens for rollout in rollouts),
            "reflection": reflecting.estimate,
            "reflection_interval": [reflecting.low, reflecting.high],
        }


def evaluate(
    policy: Policy,
    engine: RolloutEngine,
    examples: Sequence[Example],
    *,
    benchmark: str,
    sampling: Sampling,
    reflection: Reflection,
    seed: int = 0,
    description: str = "",
) -> Report:
    """Asks every question twice, with its image and with a blank one; shows a progress bar under `description`."""
    with tqdm(total=2 * len(examples), desc=description or benchmark, unit="item") as bar:

        def answers(examples: Sequence[Example]) -> tuple[Rollout, ...]:
            rollouts: list[Rollout] = []
            for group in sample(engine, policy, examples, sampling=sampling, seed=seed):
                rollouts += group
                bar.update(1)
            return tuple(rollouts)

        return Report(
            benchmark=benchmark,
            rollouts=answers(examples),
            blank_rollouts=answers(BlankImages(examples)),
            reflection=reflection,
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
        if key not in (*shared, "by_category")
    }
    categories = {
        name: {when: report["by_category"][name] for when, report in reports.items()} for name in after["by_category"]
    }
    return {**run, **{key: after[key] for key in shared}, **flat, "by_category": categories}


def _majority(examples: Sequence[Example]) -> float:
    """Accuracy of always giving, in each category, the letter or the words that are most often right there."""
    by_category: dict[str, list[Example]] = {}
    for example in examples:
        by_category.setdefault(example.category, []).append(example)
    best = 0
    for category in by_category.values():
        letters = Counter(example.solution for example in category)
        words = Counter(example.solution_text.casefold() for example in category)
        best += max(letters.most_common(1)[0][1], words.most_common(1)[0][1])
    return best / len(examples)
