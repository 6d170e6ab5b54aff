"""What every scorer is: a verdict on a rollout, and a way to average verdicts over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from visual_r1.examples import Example, Rollout


@dataclass(frozen=True)
class Part:
    """Some of the items, by position, and the weight of their mean in the whole."""

    weight: float
    """The weights of all parts add up to 1."""
    indices: tuple[int, ...]


class Scorer(Protocol):
    """Judges a rollout, and says how much each item counts.

    Accuracy, its interval, chance, majority and accuracy on blank images are all averaged by the same parts, so that
    they can be compared.
    """

    def __call__(self, rollout: Rollout) -> bool:
        """Whether the response is right. Never raises and never hangs, whatever the response."""
        ...

    def is_read(self, rollout: Rollout) -> bool:
        """Whether the response holds an answer where the rule looks for one first; their share is the parse rate."""
        ...

    def parts(self, examples: Sequence[Example]) -> tuple[Part, ...]:
        """The means that make up the mean over these items; one part of weight 1 where every item counts the same."""
        ...

    def problem(self, examples: Sequence[Example]) -> str | None:
        """Why these items of a whole benchmark cannot be averaged so; None where they can."""
        ...

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Names and subsets (`Example.subset`) of the groups of items that the rule's own tables show."""
        ...


def plain_mean(examples: Sequence[Example]) -> tuple[Part, ...]:
    """Every item counts the same."""
    return (Part(1.0, tuple(range(len(examples)))),)
