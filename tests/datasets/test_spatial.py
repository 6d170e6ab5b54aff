"""The drawn data set: repeatable, balanced, split by scenes, and right in its own answers."""

from __future__ import annotations

from collections import Counter

import pytest

from visual_r1.datasets.spatial import SPLIT_BUCKETS, Spatial
from visual_r1.examples import Rollout
from visual_r1.organisms.corpus import REFLECTIONS
from visual_r1.organisms.questions import CATEGORIES
from visual_r1.parsing import is_correct
from visual_r1.prompts import PROMPT_STYLES

GOLDEN_QUESTION = (
    "Considering the relative positions of the yellow circle and the red square in the image provided, where is the "
    "yellow circle located with respect to the red square? Select from the following choices.\n(A) left\n(B) right"
)


def test_an_index_yields_the_same_example_at_any_size_and_order():
    small, large = Spatial(split="train", size=8), Spatial(split="train", size=800)
    late = large[7]
    assert (late.question, late.solution) == (small[7].question, small[7].solution)
    assert late.images[0].tobytes() == small[7].images[0].tobytes()
    assert late.id == "spatial/train/0/7"


def test_the_generator_still_draws_what_it_drew():
    example = Spatial(split="test", size=2)[1]
    # Whoever changes this must raise GENERATOR_VERSION: stored results name examples by index.
    assert example.question == GOLDEN_QUESTION
    assert example.solution == "A"


def test_seeds_and_splits_draw_different_examples():
    questions = [
        tuple(example.question for example in Spatial(split=split, size=8, seed=seed))
        for split, seed in (("train", 0), ("train", 1), ("probe", 0))
    ]
    assert len(set(questions)) == 3


def test_no_bucket_belongs_to_two_splits_and_none_is_left_over():
    buckets = [bucket for split in SPLIT_BUCKETS.values() for bucket in split]
    assert sorted(buckets) == list(range(100))


@pytest.mark.parametrize("split", SPLIT_BUCKETS)
def test_every_scene_lies_in_its_split(split):
    data = Spatial(split=split, size=40)
    assert {data.draw(index)[0].bucket for index in range(40)} <= set(SPLIT_BUCKETS[split])


def test_categories_and_letters_are_balanced():
    data = Spatial(split="train", size=64)
    assert Counter(example.category for example in data) == dict.fromkeys(CATEGORIES, 16)
    letters = Counter((example.category, example.solution) for example in data)
    assert all(letters["Count", letter] == 4 for letter in "ABCD")
    assert all(letters[category, letter] == 8 for category in CATEGORIES[1:] for letter in "AB")


def test_a_filter_keeps_only_its_categories():
    assert {example.category for example in Spatial(split="probe", size=6, categories=("Depth",))} == {"Depth"}


@pytest.mark.parametrize("style", PROMPT_STYLES.values(), ids=lambda style: style.name)
def test_every_solution_scores(style):
    for example in Spatial(split="test", size=32):
        completion = style.answer_only(example)
        rollout = Rollout(
            example=example,
            completion=completion,
            num_tokens=5,
            is_truncated=False,
            prompt_opens_think=style.opens_think,
        )
        assert is_correct(rollout), completion


def test_it_is_a_sequence():
    data = Spatial(split="train", size=3)
    assert [example.id for example in data] == [f"spatial/train/0/{index}" for index in range(3)]
    assert data[-1].id == "spatial/train/0/2"
    assert [example.id for example in data[1:]] == ["spatial/train/0/1", "spatial/train/0/2"]
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    "arguments",
    [
        {"split": "dev", "size": 1},
        {"split": "train", "size": -1},
        {"split": "train", "size": 1, "categories": ("Color",)},
        {"split": "train", "size": 1, "categories": ()},
        {"split": "train", "size": 1, "thoughts": "deep"},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"unknown split|negative|categories|unknown thoughts"):
        Spatial(**arguments)


def test_the_fingerprint_names_what_decides_the_examples():
    prints = [
        Spatial(split="train", size=8).fingerprint(),
        Spatial(split="train", size=9).fingerprint(),
        Spatial(split="probe", size=8).fingerprint(),
        Spatial(split="train", size=8, seed=1).fingerprint(),
        Spatial(split="train", size=8, categories=("Count",)).fingerprint(),
    ]
    assert len(set(prints)) == 5
    assert prints[0] == Spatial(split="train", size=8).fingerprint()


def test_rotation_moves_each_choice_on():
    data = Spatial(split="test", size=4)
    turned = data.rotated(1)
    for example, other in zip(data, turned, strict=True):
        assert other.choices == (example.choices[-1], *example.choices[:-1])
        assert other.solution_text == example.solution_text and other.solution != example.solution
        assert all(
            f"({letter}) {choice}" in other.question for letter, choice in zip("ABCD", other.choices, strict=False)
        )
        assert (other.id, other.images[0].tobytes()) == (example.id, example.images[0].tobytes())
    assert [example.question for example in turned.rotated(3)] == [example.question for example in data]
    assert data.fingerprint() != turned.fingerprint()
    # Runs from before there was a rotation name their data so.
    assert Spatial(split="train", size=8).rotated(0).fingerprint() == "061cbe5e27c4c91e"
    assert data[0].solution_as_written == turned[0].solution_as_written


@pytest.mark.parametrize("world", ["nano", "micro"])
@pytest.mark.parametrize("thoughts", ["careful", "reflective"])
def test_a_thought_is_a_worked_solution_of_the_same_question(world, thoughts):
    plain = Spatial(split="train", size=64, world=world)
    worked = Spatial(split="train", size=64, world=world, thoughts=thoughts)
    assert {example.thought for example in plain} == {None}
    assert [example.question for example in worked] == [example.question for example in plain]
    assert worked.fingerprint() != plain.fingerprint()
    assert [example.thought for example in worked] == [example.thought for example in worked]
    for example in worked:
        thought = example.thought or ""
        reflections = sum(thought.count(phrase.strip()) for phrase in REFLECTIONS)
        assert reflections == (1 if thoughts == "reflective" else 0), thought
        last = thought.rpartition(" So ")[2]
        said = {"Count": f"there are {example.solution_text}.", "Relation": f"it is {example.solution_text}."}
        ordinal = ("the first", "the second")["AB".find(example.solution)]
        assert last == said.get(example.category, f"{ordinal} is closer."), thought
