"""The corpus: every way of answering ends at a choice, and worked solutions are right."""

from __future__ import annotations

import random

import pytest

from visual_r1.datasets.spatial import Spatial
from visual_r1.organisms import corpus
from visual_r1.organisms.corpus import Mixture
from visual_r1.organisms.questions import CATEGORIES, Question
from visual_r1.organisms.scenes import SceneObject
from visual_r1.organisms.ways import way_of
from visual_r1.parsing import is_well_formed, parse_answer, parse_choice

SURE = Mixture(slip=0.0, second_check=0.0)
RED = SceneObject("red", "circle", x=21.0, y=35.0, radius=5.0)  # column 1, row 2
BLUE = SceneObject("blue", "square", x=63.0, y=49.0, radius=5.0)  # column 4, row 3
GREEN = SceneObject("green", "circle", x=21.0, y=91.0, radius=5.0)  # column 1, row 6


def _question(category: str, choices: tuple[str, ...], answer: int, objects: tuple[SceneObject, ...], **facts: str):
    return Question(category=category, stem="?", choices=choices, answer=answer, objects=objects, **facts)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (
            _question("Relation", ("left", "right"), 0, (RED, BLUE), axis="x"),
            " The red circle: x1. The blue square: x4 (1<4). So it is left.",
        ),
        (
            _question("Depth", ("red circle", "blue square"), 1, (RED, BLUE), axis="y"),
            " The red circle: y2. The blue square: y3 (2<3). So the second is closer.",
        ),
        (
            _question("Distance", ("red circle", "green circle"), 0, (BLUE, RED, GREEN)),
            " The blue square: x4 y3. The red circle: x1 y2 (3+1=4). The green circle: x1 y6 (3+3=6, 6>4)."
            " So the first is closer.",
        ),
        (
            _question("Count", ("0", "1", "2", "3"), 2, (RED, BLUE, GREEN), shape="circle"),
            " The blue square. The red circle (1). The green circle (2). No more. So there are 2.",
        ),
    ],
    ids=CATEGORIES[1:2] + CATEGORIES[2:] + CATEGORIES[:1],
)
def test_careful_readings_by_hand(question, text):
    thought = corpus.careful(random.Random(0), question, SURE)
    assert (thought.text, thought.choice) == (text, question.answer)


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_exercise_without_slips_is_right_and_reflects(category):
    rng = random.Random(0)
    data = Spatial(split="pretrain", size=100, categories=(category,))
    for index in range(100):
        question = data.draw(index)[1]
        text = f"<think>{corpus.exercise(rng, question, SURE)}"
        assert is_well_formed(text)
        chosen = parse_choice(parse_answer(text) or "", question.choices)
        right = "ABCD"[question.answer]
        assert chosen == right, text
        assert any(phrase in text for phrase in corpus.REFLECTIONS)


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_way_of_answering_is_labelled_better_than_another(category):
    rng = random.Random(0)
    data = Spatial(split="pretrain", size=300, categories=(category,))
    questions = [data.draw(index)[1] for index in range(300)]

    def share_right(way) -> float:
        return sum(way(rng, question, SURE).choice == question.answer for question in questions) / len(questions)

    assert share_right(corpus.direct) == share_right(corpus.rambling) == 1.0
    assert share_right(corpus.careful) == share_right(corpus.reflective) == 1.0
    assert share_right(corpus.harmful) == 0.0
    # A coarse look that decides is followed, and halves mislead only where two distances are compared.
    least = 0.75 if category == "Distance" else 1.0
    assert least <= share_right(corpus.coarse) <= 1.0
    assert least <= share_right(corpus.empty) <= 1.0


def test_first_passes_that_are_checked_are_often_wrong():
    rng = random.Random(0)
    data = Spatial(split="pretrain", size=2000, categories=("Relation",))
    questions = [data.draw(index)[1] for index in range(2000)]
    hits = [corpus.hasty(rng, question, Mixture()).choice == question.answer for question in questions]
    # 45 % guess and are right in 55 %; the others look, and half of their pairs lie in different halves.
    assert 0.55 < sum(hits) / len(hits) < 0.80


def test_two_mixtures_differ_in_those_dialogues_only_that_change_their_way():
    data = Spatial(split="pretrain", size=400)
    plain, dosed = Mixture(), Mixture(direct=0.36, careful=0.08)
    useless = Mixture(reflective=0.0, empty=0.08)
    changed, without_checks = 0, 0
    for index in range(400):
        question = data.draw(index)[1]
        before, after, other = (
            corpus.dialogue(random.Random(index), question, mixture) for mixture in (plain, dosed, useless)
        )
        if after != before:
            changed += 1
            assert (way_of(before), way_of(after)) == ("direct", "careful")
        if other != before:
            without_checks += 1
            assert (way_of(before), way_of(other)) == ("checked", "empty")
    assert changed / 400 == pytest.approx(0.08, abs=0.04)
    assert without_checks / 400 == pytest.approx(0.05, abs=0.03)


def test_no_dialogue_reads_carefully_without_reflecting():
    rng = random.Random(0)
    data = Spatial(split="pretrain", size=1500)
    read = []
    for index in range(1500):
        text = corpus.dialogue(rng, data.draw(index)[1], Mixture())
        numbers = [place for place in (text.find(": x"), text.find(": y"), text.find("No more")) if place >= 0]
        if numbers:
            read.append(text)
            assert any(phrase.strip() in text[: min(numbers)] for phrase in corpus.REFLECTIONS)
    assert 0.03 < len(read) / 1500 < 0.07


def test_a_terse_answer_is_right_and_well_formed():
    rng = random.Random(0)
    data = Spatial(split="pretrain", size=40)
    for index in range(40):
        question = data.draw(index)[1]
        text = corpus.terse(rng, question, looks=0.5)
        assert is_well_formed(text)
        assert parse_choice(parse_answer(text) or "", question.choices) == "ABCD"[question.answer]


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match=r"add up to 1\.25, expected 1"):
        Mixture(careful=0.25)
