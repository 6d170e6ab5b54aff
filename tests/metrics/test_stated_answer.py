"""The answer that a thought stands at: what states one, what only looks like it, and nano's own words."""

from __future__ import annotations

import random
from string import ascii_uppercase

import pytest

from visual_r1.metrics.stated_answer import stated_answer
from visual_r1.organisms.corpus import Mixture, ask_any, coarse, direct
from visual_r1.organisms.scenes import draw_scene

CLOSER = (
    "Which object is closer to the camera taking this photo, the chair or the lamp? "
    "Select from the following choices.\n(A) chair\n(B) lamp"
)
WHERE = (
    "Considering the relative positions of the cup and the plate in the image provided, where is the cup located with "
    "respect to the plate? Select from the following choices.\n(A) left\n(B) right"
)
COUNT = "How many circles are in the image? Select from the following choices.\n(A) 1\n(B) 4\n(C) 10\n(D) 2"
YES_NO = "Is the cup on the plate?\n(A) yes\n(B) no"

CHOICES = {CLOSER: ("chair", "lamp"), WHERE: ("left", "right"), COUNT: ("1", "4", "10", "2"), YES_NO: ("yes", "no")}


def stated(text, question):
    return stated_answer(text, question=question, choices=CHOICES[question])


@pytest.mark.parametrize(
    ("text", "question", "letter"),
    [
        ("I think it is 4.", COUNT, "B"),
        ("I see some circles in the image. So there are 10.", COUNT, "C"),
        ("There are 4 circles in the image. ", COUNT, "B"),
        ("The answer is 2", COUNT, "D"),
        ("the correct answer is (b).", COUNT, "B"),
        ("My answer: B", COUNT, "B"),
        ("It is option C.", COUNT, "C"),
        ("The answer is (B) 4.", COUNT, "B"),
        ("So it is left.", WHERE, "A"),
        ("I see, it is right. ", WHERE, "B"),
        ("It's left,", WHERE, "A"),
        ("The cup: x3. The plate: x5 (3<5). So it is left.", WHERE, "A"),
        ("The chair looks near. The lamp looks far. So the first is closer.", CLOSER, "A"),
        ("Therefore, the lamp is closer to the camera. ", CLOSER, "B"),
        ("I think that the lamp is the closer object", CLOSER, "B"),
        ("It is the second.", CLOSER, "B"),
        ("Option A is correct.", CLOSER, "A"),
        ("The answer is no.", YES_NO, "B"),
        ("It is left. So it is right.", WHERE, "B"),  # the last one counts
        ("It is left. That is right.", WHERE, None),  # a choice, or a verdict on the sentence before
        ("It is left. Yes, it is right.", WHERE, None),
        ("OK, I see that it is right.", WHERE, None),
        ("Yes, it is left. That is right, it is left.", WHERE, "A"),
        ("It is left. The light is nice.", WHERE, "A"),
        ("It is 4.\nThe cup is nice", COUNT, "B"),
    ],
)
def test_what_states_an_answer(text, question, letter):
    assert stated(text, question) == letter


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("", COUNT),
        (" . ! ?", COUNT),
        ("The light is nice.", WHERE),
        ("I see some circles in the image.", COUNT),
        pytest.param("So there are 7.", COUNT, id="none-of-the-choices"),
        pytest.param("So there are 4 red ones.", COUNT, id="a-part-of-what-was-asked"),
        pytest.param("There are 41 circles.", COUNT, id="within-a-number"),
        pytest.param("It is 4.5.", COUNT, id="within-a-fraction"),
        pytest.param("The plate is left of the cup.", WHERE, id="depends-on-what-was-asked"),
        pytest.param("The cup is on the left side.", WHERE, id="a-place-in-the-image"),
        pytest.param("The lamp is in this photo.", CLOSER, id="not-what-was-asked-for"),
        pytest.param("The lamp is closer to the chair.", CLOSER, id="two-choices"),
        pytest.param("The chair is farther from the camera.", CLOSER, id="the-opposite"),
        pytest.param("The answer is left or right.", WHERE, id="either"),
        pytest.param("It is A or B.", WHERE, id="either-letter"),
        pytest.param("It might be left.", WHERE, id="hedged"),
        pytest.param("It is not left.", WHERE, id="denied"),
        pytest.param("I don't think it is left.", WHERE, id="denied-before"),
        pytest.param("Is it left? It is left?", WHERE, id="asked"),
        pytest.param("If it is left, the answer is A.", WHERE, id="conditional"),
        pytest.param("Some say it is left.", WHERE, id="somebody-else"),
        pytest.param("It is left. No, it is not left.", WHERE, id="withdrawn"),
        pytest.param("The answer is A. Or maybe it is B.", WHERE, id="withdrawn-by-letters"),
        pytest.param("It is a cup.", CLOSER, id="the-article"),
        pytest.param("It is a.", CLOSER, id="a-small-letter"),
        pytest.param("The first image is closer.", CLOSER, id="the-first-of-something-else"),
        pytest.param("The answer is the third.", CLOSER, id="no-such-place"),
        pytest.param("It is not no.", YES_NO, id="denied-no"),
        pytest.param("There are 4 circles" + " in the image" * 30, COUNT, id="long"),
    ],
)
def test_what_only_looks_like_it(text, question):
    assert stated(text, question) is None


def test_words_are_no_patterns():
    assert stated_answer("It is a.c.", question="Which?", choices=("a.c", "abc")) == "A"
    assert stated_answer("It is abc.", question="Which?", choices=("a.c", "abc")) == "B"
    assert stated_answer("It is (x+y)*.", question="Which?", choices=("(x+y)*", ".")) == "A"
    assert stated_answer("It is .", question="Which?", choices=("x", ".")) is None


def test_nano_says_where_it_stands():
    """Every first pass of the corpus ends at a choice, and it is read as that choice and as no other."""
    rng = random.Random(0)
    for number in range(400):
        question = ask_any(rng, draw_scene(rng))
        thought = (direct, coarse)[number % 2](rng, question, Mixture())
        found = stated_answer(thought.text, question=question.text, choices=question.choices)
        assert found == ascii_uppercase[thought.choice], thought.text


def test_it_never_raises_and_takes_no_time():
    rng = random.Random(1)
    pieces = (
        "so ",
        "the ",
        "it is ",
        "A",
        "(B",
        ")",
        "left ",
        "not ",
        ". ",
        "\n",
        "?",
        "I think that ",
        "\u017f",
        ", ",
    )
    for _ in range(300):
        stated("".join(rng.choices(pieces, k=200)), WHERE)
    stated("so " * 20_000, WHERE)
