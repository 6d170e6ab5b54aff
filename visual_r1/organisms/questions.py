"""The four kinds of question of CV-Bench (arXiv 2406.16860) about our scenes, in CV-Bench's own words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from visual_r1.organisms.scenes import CELL, CELL_METRES, Scene, SceneObject

CATEGORIES = ("Count", "Relation", "Depth", "Distance")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene, with what a worked solution needs to know about it."""

    category: str
    stem: str
    """The question itself, without its choices."""
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    objects: tuple[SceneObject, ...]
    """The objects the question names, in its order; for Count, all objects of the scene."""
    shape: str = ""
    """Count: the shape to be counted."""
    axis: str = ""
    """Relation and Depth: the axis that decides, as `World` names it."""

    @property
    def text(self) -> str:
        """The question with its lettered choices, as CV-Bench puts it."""
        lines = [f"({letter}) {choice}" for letter, choice in zip(ascii_uppercase, self.choices, strict=False)]
        return "\n".join([f"{self.stem} Select from the following choices.", *lines])


def num_choices(category: str) -> int:
    """How many choices a question of the category offers."""
    return 4 if category == "Count" else 2


def ask(rng: random.Random, scene: Scene, category: str, *, position: int) -> Question | None:
    """Asks a question whose right choice stands at a given position; None when the scene allows no such question.

    Pairs of objects are a few cells apart, one to three in nano's world, so that a coarse look is often a
    tie and a careful reading is not.
    """
    if category == "Count":
        return _ask_count(rng, scene, position)
    if category == "Relation":
        return _ask_relation(rng, scene, position)
    if category == "Depth":
        return _ask_depth(rng, scene, position)
    if category == "Distance":
        return _ask_distance(rng, scene, position)
    raise ValueError(f"unknown category {category!r}, expected one of {CATEGORIES}")


def _ask_count(rng: random.Random, scene: Scene, position: int) -> Question:
    # Mostly a shape that is there; a shape drawn blindly makes zero a possible answer.
    shape = rng.choice(scene.world.shapes if rng.random() < 0.3 else [thing.shape for thing in scene.objects])
    truth = sum(thing.shape == shape for thing in scene.objects)
    # Four numbers in a row, begun anywhere they hold the truth: its rank among them gives little away.
    least = rng.randint(max(0, truth - 3), truth)
    others = rng.sample([number for number in range(least, least + 4) if number != truth], 3)
    return Question(
        category="Count",
        stem=f"How many {shape}s are in the image?",
        choices=_place(str(truth), [str(number) for number in others], position),
        answer=position,
        objects=scene.objects,
        shape=shape,
    )


def _ask_relation(rng: random.Random, scene: Scene, position: int) -> Question | None:
    axis = rng.choice("xy")
    pair = _close_pair(rng, scene, axis)
    if pair is None:
        return None
    less, more = sorted(pair, key=lambda thing: thing.along(axis))
    # The order of the words is fixed and the order of the objects puts the right one in its place: the letter follows
    # from the word, since looking up letters among shuffled words is a skill that so small a model learns late.
    first, second = (less, more) if position == 0 else (more, less)
    return Question(
        category="Relation",
        stem=(
            f"Considering the relative positions of the {first.name} and the {second.name} in the image provided, "
            f"where is the {first.name} located with respect to the {second.name}?"
        ),
        choices=("left", "right") if axis == "x" else ("above", "below"),
        answer=position,
        objects=(first, second),
        axis=axis,
    )


def _ask_depth(rng: random.Random, scene: Scene, position: int) -> Question | None:
    axis = scene.world.depth_axis
    pair = _close_pair(rng, scene, axis)
    if pair is None:
        return None
    near, far = sorted(pair, key=lambda thing: thing.along(axis), reverse=axis == "y")
    first, second = (near, far) if position == 0 else (far, near)
    return Question(
        category="Depth",
        stem=(f"Which object is closer to the camera taking this photo, the {first.name} or the {second.name}?"),
        choices=(first.name, second.name),
        answer=position,
        objects=(first, second),
        axis=axis,
    )


def _ask_distance(rng: random.Random, scene: Scene, position: int) -> Question | None:
    for _ in range(20):
        anchor, *pair = rng.sample(scene.objects, 3)
        close, far = sorted(pair, key=anchor.apart)
        gap = anchor.apart(far) - anchor.apart(close)
        # The worked solutions add cells along both axes; they must agree with the true distance.
        if scene.world.distance_gap[0] <= gap <= scene.world.distance_gap[1] and cells_apart(
            anchor, close
        ) < cells_apart(anchor, far):
            break
    else:
        return None
    first, second = (close, far) if position == 0 else (far, close)
    return Question(
        category="Distance",
        stem=(
            "Estimate the real-world distances between objects in this image. "
            f"Which object is closer to the {anchor.name}, the {first.name} or the {second.name}?"
        ),
        choices=(first.name, second.name),
        answer=position,
        objects=(anchor, first, second),
    )


def cells_apart(first: SceneObject, second: SceneObject) -> int:
    """Cells between two objects, along both axes of the plane together."""
    return sum(abs(first.cell(axis) - second.cell(axis)) for axis in first.world.plane_axes)


def _close_pair(rng: random.Random, scene: Scene, axis: str) -> tuple[SceneObject, SceneObject] | None:
    """Two objects a few cells apart along an axis, in random order; None when twenty draws find none."""
    for _ in range(20):
        first, second = rng.sample(scene.objects, 2)
        apart = abs(first.cell(axis) - second.cell(axis))
        if 1 <= apart <= scene.world.pair_cells and _is_clear(first, second, axis):
            return first, second
    return None


def _is_clear(first: SceneObject, second: SceneObject, axis: str) -> bool:
    """Whether two objects that lie in different cells differ by a quarter of one, as they always do in nano's world."""
    cell = CELL if axis in ("x", "y") else CELL_METRES
    return abs(first.along(axis) - second.along(axis)) > cell / 4


def _place(right: str, wrong: Sequence[str], position: int) -> tuple[str, ...]:
    """The choices with the right one at ``position``."""
    return (*wrong[:position], right, *wrong[position:])
