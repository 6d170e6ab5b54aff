"""Resampling: a step samples further prompts until enough of its groups can teach something.

A group whose completions all earn the same has no advantage and no gradient. DAPO (arXiv 2503.14476, section 3.2) calls
the cure dynamic sampling; GPG's released code does the same with a lower bar. What is decided here is decided for all
processes together, so that each of them comes to the same end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from visual_r1.examples import Rollout
from visual_r1.parsing import is_correct
from visual_r1.rollout.engine import Completion

_CRITERIA = ("reward", "accuracy")
_TOLERANCE = 1e-5
"""Sums of rewards that differ by less are equal but for rounding; GPG's code has the same number."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One prompt's completions and what they earned."""

    index: int
    """The prompt's row in the training data."""
    completions: tuple[Completion, ...]
    rollouts: tuple[Rollout, ...]
    scores: tuple[tuple[float, ...], ...]
    """A row for each completion, a column for each reward, not yet weighted; NaN where a reward gave none."""
    rewards: tuple[float, ...]
    """The weighted sum of each completion's scores; NaN where it has none."""

    @property
    def has_gradient(self) -> bool:
        """Whether its rewards differ; a completion without one is not compared with the others."""
        known = [reward for reward in self.rewards if not math.isnan(reward)]
        return bool(known) and max(known) - min(known) > _TOLERANCE

    @property
    def has_mixed_answers(self) -> bool:
        """Whether some of its answers are right and some wrong."""
        return len({is_correct(rollout) for rollout in self.rollouts}) == 2


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """When a step has sampled enough.

    Raises:
        ValueError: a value out of its range.
    """

    by: str
    """What makes a group informative. ``reward``: its completions earn different rewards; ``accuracy``: some of its
    answers are right and some wrong, whatever else they earn."""
    min_informative: float
    """The share of a step's groups that must be informative, in (0, 1]; groups of earlier attempts count."""
    max_attempts: int
    """Batches that a step samples at most, the first one included; then it learns from what it has."""

    def __post_init__(self) -> None:
        if self.by not in _CRITERIA:
            raise ValueError(f"method.resampling.by={self.by}: unknown, expected one of {list(_CRITERIA)}")
        if not 0 < self.min_informative <= 1:
            raise ValueError(
                f"method.resampling.min_informative={self.min_informative}: expected a share above 0, 1 at most"
            )
        if self.max_attempts < 1:
            raise ValueError(f"method.resampling.max_attempts={self.max_attempts}: expected at least 1")

    def is_informative(self, group: Group) -> bool:
        """Whether a group counts."""
        return group.has_gradient if self.by == "reward" else group.has_mixed_answers


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step has sampled and what it learns from."""

    sampled: tuple[Group, ...]
    """The groups of all attempts, in order."""
    trained: tuple[Group, ...]
    """As many groups as one attempt has: the informative ones in the order they were found, then, where they are too
    few, others of the last attempt to fill the batch."""
    num_attempts: int

    @property
    def gradient_share(self) -> float:
        """The share of the groups learned from that have a gradient."""
        return sum(group.has_gradient for group in self.trained) / len(self.trained)


def fresh_prompts(tried: Sequence[int], *, num_examples: int, max_attempts: int, seed: int) -> Iterator[list[int]]:
    """Rows that the step has not tried, as many at a time as `tried`; ends where the data set has no more.

    Args:
        tried: the rows of the first attempt, which come from the sampler.
        num_examples: rows of the training data.
        max_attempts: no more are drawn than so many attempts can use.
        seed: of the run and the step alone, so that a resumed run draws what it would have drawn.
    """
    size, first = len(tried), set(tried)
    drawn = random.Random(seed).sample(range(num_examples), min(num_examples, size * max_attempts))
    fresh = [index for index in drawn if index not in first]
    for start in range(0, len(fresh) - size + 1, size):
        yield fresh[start : start + size]


def collect(
    resampling: Resampling,
    first: Sequence[int],
    fresh: Iterable[Sequence[int]],
    roll_out: Callable[[Sequence[int]], Sequence[Group]],
) -> Batch:
    """Rolls out one batch of prompts after another until enough groups are informative.

    Args:
        resampling: what is enough.
        first: the rows that the step was given.
        fresh: rows for further attempts, each as many as `first`.
        roll_out: the scored groups of some rows, in order.
    """
    sampled: list[Group] = []
    found: list[Group] = []
    last: Sequence[Group] = ()
    num_attempts = 0
    for rows in islice(chain([first], fresh), resampling.max_attempts):
        last = roll_out(rows)
        num_attempts += 1
        sampled += last
        found += filter(resampling.is_informative, last)
        if len(found) >= resampling.min_informative * len(first):
            break
    others = [group for group in last if not resampling.is_informative(group)]
    return Batch(sampled=tuple(sampled), trained=tuple((found + others)[: len(first)]), num_attempts=num_attempts)
