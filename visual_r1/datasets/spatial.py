"""Spatial questions about drawn scenes, in CV-Bench's four kinds: a data set that needs no download."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self, overload

from visual_r1.examples import Example
from visual_r1.organisms.corpus import Mixture, Thought, careful, reflective
from visual_r1.organisms.questions import CATEGORIES, Question, ask, num_choices
from visual_r1.organisms.scenes import NANO, WORLDS, Scene, World, draw_scene

GENERATOR_VERSION = 2
"""To be raised with every change that alters what an index yields."""

SPLIT_BUCKETS = {
    "pretrain": range(0, 60),
    "train": range(60, 80),
    "probe": range(80, 85),
    "test": range(85, 100),
}
"""The buckets of ``Scene.bucket`` that each split owns: no scene can belong to two splits."""
NEW_PAIRS = "test_new"
"""One more split of a world that keeps combinations of colour and shape back: scenes of these alone."""
THOUGHTS: dict[str, Callable[[random.Random, Question, Mixture], Thought]] = {
    "careful": careful,
    "reflective": reflective,
}
"""The worked solutions that an example can come with, as the organisms' exercises write them."""
_FLAWLESS = Mixture(slip=0.0, second_check=0.0)
"""Numbers are read as they are, and checked once."""


class Spatial(Sequence[Example]):
    """Examples of one split, drawn when asked for: the same for the same seed, split and index, at any size.

    Categories take turns and so do the letters of the right choices: any run of 16 examples that starts at a multiple
    of 16 holds each category four times and each letter of each category equally often.
    """

    def __init__(
        self,
        *,
        split: str,
        size: int | None,
        seed: int = 0,
        categories: Sequence[str] = CATEGORIES,
        world: str = NANO.name,
        thoughts: str | None = None,
    ) -> None:
        """Raises ValueError for an unknown world, split, category or thoughts, no category, or a negative size."""
        if world not in WORLDS:
            raise ValueError(f"unknown world {world!r}, expected one of {list(WORLDS)}")
        self.world = WORLDS[world]
        splits = [*SPLIT_BUCKETS, *([NEW_PAIRS] if self.world.new_pairs else [])]
        if split not in splits:
            raise ValueError(f"unknown split {split!r}, expected one of {splits}")
        if size is None:
            raise ValueError("spatial makes as many examples as are asked for, say how many: size=20000")
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        if not categories or not set(categories) <= set(CATEGORIES):
            raise ValueError(f"categories must be some of {list(CATEGORIES)}, got {list(categories)}")
        if thoughts is not None and thoughts not in THOUGHTS:
            raise ValueError(f"unknown thoughts {thoughts!r}, expected null or one of {list(THOUGHTS)}")
        self.split = split
        self.size = size
        self.seed = seed
        self.categories = tuple(categories)
        self.thoughts = thoughts
        self._name = "spatial" if self.world is NANO else f"spatial_{world}"
        self._num_steps = 0

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} of a data set of {self.size}")
        index %= self.size
        scene, question = self.draw(index)
        shift = self._num_steps % len(question.choices)
        question = replace(
            question,
            choices=question.choices[-shift:] + question.choices[:-shift],
            answer=(question.answer + shift) % len(question.choices),
        )
        return Example(
            id=f"{self._name}/{self.split}/{self.seed}/{index}",
            images=(scene.render(),),
            question=question.text,
            choices=question.choices,
            solution="ABCD"[question.answer],
            category=question.category,
            # As the organisms' corpus writes it: a number names itself, and no letter need be looked up.
            solution_as_written=question.choices[question.answer] if question.category == "Count" else None,
            thought=self._thought(index, question),
        )

    def rotated(self, num_steps: int) -> Self:
        """The same examples with each question's choices moved on by some places; see `TableExamples.rotated`."""
        other = copy.copy(self)
        other._num_steps = self._num_steps + num_steps
        return other

    def draw(self, index: int) -> tuple[Scene, Question]:
        """The scene and the question behind an example, for worked solutions."""
        # A string seeds through SHA-512, the same on every machine; a tuple would go through hash().
        rng = random.Random(f"{self._name}/{GENERATOR_VERSION}/{self.split}/{self.seed}/{index}")
        turn, kind = divmod(index, len(self.categories))
        category = self.categories[kind]
        position = turn % num_choices(category)
        while True:
            scene = draw_split_scene(rng, self.split, self.world)
            question = ask(rng, scene, category, position=position)
            if question is not None:
                return scene, question

    def _thought(self, index: int, question: Question) -> str | None:
        if self.thoughts is None:
            return None
        # A random stream of its own: with thoughts and without, an index yields the same question.
        rng = random.Random(f"{self._name}/{GENERATOR_VERSION}/{self.split}/{self.seed}/{index}/{self.thoughts}")
        thought = THOUGHTS[self.thoughts](rng, question, _FLAWLESS)
        if thought.choice != question.answer:
            raise ValueError(f"{self._name}/{self.split}/{self.seed}/{index}: its worked solution is wrong")
        return thought.text.strip()

    def fingerprint(self) -> str:
        """A hash of everything that decides the examples, for a run's record."""
        parts = {
            "name": self._name,
            "version": GENERATOR_VERSION,
            "split": self.split,
            "size": self.size,
            "seed": self.seed,
            "categories": self.categories,
            **({"num_steps": self._num_steps} if self._num_steps else {}),
            **({"thoughts": self.thoughts} if self.thoughts else {}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def draw_split_scene(rng: random.Random, split: str, world: World = NANO) -> Scene:
    """Draws scenes until one belongs to the split."""
    if split == NEW_PAIRS:
        return draw_scene(rng, world, of_new_pairs=True)
    while True:
        scene = draw_scene(rng, world)
        if scene.bucket in SPLIT_BUCKETS[split]:
            return scene
