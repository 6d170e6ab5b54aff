"""How cells of other people's tables are read: choices, placeholders, conversations, solutions in tags."""

from __future__ import annotations

import pytest

from visual_r1.datasets.layouts import (
    listed_choices,
    offer,
    plain_text,
    question_text,
    solution_text,
    without_placeholders,
)


@pytest.mark.parametrize(
    ("question", "choices"),
    [
        ("Where is it?\n(A) left\n(B) right", ("left", "right")),
        ("Where is it?\n  (A) left \n  (B) right\nAnswer with a letter.", ("left", "right")),
        ("Points (A) and (B) are marked.\n(A) A is closer\n(B) B is closer", ("A is closer", "B is closer")),
        ("How long?\n(A) 3.5 cm.\n(B) 4 cm.", ("3.5 cm.", "4 cm.")),
        ("Choose from (A) True or (B) False.", ("True", "False")),
        ("Is it (A) left or (B) right?", ("left", "right")),
        ("Choices: (A) 20°, (B) 30°; (C) 40°, and (D) 5.5", ("20°", "30°", "40°", "5.5")),
        ("(A) 1 (B) 2\n(C) 3 (D) 4\nHow many?", ("1", "2", "3", "4")),
        ("(A) the sand (B) a band", ("the sand", "a band")),
        ("(A) left\n(B) right (C) between", ("left", "right", "between")),
    ],
)
def test_a_list_of_choices_is_found(question, choices):
    assert listed_choices(question) == choices


@pytest.mark.parametrize(
    "question",
    [
        "How many items are there in the image?",
        "Answer with (A), (B) or (C).",
        "(B) left\n(A) right",
        "(A) left\n(C) right",
        "Only (A) here",
        "A. left\nB. right",
        "Is (A) near (B)? Say (A) yes or (B) no",
    ],
)
def test_what_is_no_list_holds_no_choices(question):
    assert listed_choices(question) is None


def test_a_last_choice_without_an_end_is_not_guessed():
    with pytest.raises(ValueError, match=r"where choice \(B\) ends.*line of its own"):
        listed_choices("Is it (A) red or (B) blue. Answer with a letter.")


class TestOffer:
    def test_choices_that_the_question_does_not_list_are_listed_as_in_cvbench(self):
        assert offer("How many? ", ("1", "2"), ("2", "1")) == (
            "How many? Select from the following choices.\n(A) 2\n(B) 1"
        )

    @pytest.mark.parametrize(
        ("question", "swapped"),
        [
            ("Q\n(A) 1\n(B) 2", "Q\n(A) 2\n(B) 1"),
            ("Choose from (A) 1 or (B)2.", "Choose from (A) 2 or (B)1."),
            ("Points (A) and (B).\n(A) 1\n(B) 2\nAnswer.", "Points (A) and (B).\n(A) 2\n(B) 1\nAnswer."),
        ],
    )
    def test_choices_that_the_question_lists_change_places_there(self, question, swapped):
        assert offer(question, ("1", "2"), ("1", "2")) == question
        assert offer(question, ("1", "2"), ("2", "1")) == swapped

    @pytest.mark.parametrize(
        ("question", "named"),
        [
            ("Q (A) 1 (B) 3", "(B) 2"),
            ("Q (A) 10 (B) 20", "(A) 1"),
            ("Q (A) 1.5 (B) 2.5", "(A) 1"),
            ("(A) 1 (B) 2. Once more: (A) 1 (B) 2", "(A) 1"),
            ("(B) 2 (A) 1", "(B) 2"),
        ],
    )
    def test_a_question_that_lists_something_else_is_refused(self, question, named):
        with pytest.raises(ValueError, match="not listed once and in its place") as refused:
            offer(question, ("1", "2"), ("1", "2"))
        assert named in str(refused.value)


@pytest.mark.parametrize(
    ("text", "num_images", "expected"),
    [
        ("<image>Find x.", 1, "Find x."),
        ("<image>\n<image>\nFind x.", 2, "Find x."),
        ("<image> <image> Find x. <image>", 3, "Find x."),
        ("Describe <image>.", 1, "Describe."),
        ("Look.\n<image>\nWhich?", 1, "Look.\nWhich?"),
        ("First: <image>\nSecond: <image>\nWhich?", 2, "First:\nSecond:\nWhich?"),
        ("  Find x.\n\nNow.", 2, "  Find x.\n\nNow."),
    ],
)
def test_placeholders_go(text, num_images, expected):
    assert without_placeholders(text, num_images) == expected


@pytest.mark.parametrize(("text", "num_images"), [("<image>Which?", 2), ("<image><image>Which?", 1)])
def test_one_placeholder_an_image_or_none(text, num_images):
    with pytest.raises(ValueError, match=f"placeholders in the question for {num_images} images"):
        without_placeholders(text, num_images)


def test_a_placeholder_that_would_leave_a_gap_is_refused():
    with pytest.raises(ValueError, match="within the sentence.*call it the first image"):
        without_placeholders("Is <image> brighter than <image>?", 2)


class TestQuestionText:
    def test_a_text_is_itself(self):
        assert question_text("Which?") == "Which?"

    def test_a_conversation_gives_its_user_message(self):
        messages = [{"role": "system", "content": "Think first."}, {"role": "user", "content": "Which?"}]
        assert question_text(messages) == "Which?"

    def test_image_parts_become_placeholders_in_their_places(self):
        # As parquet stores them: every part has every key.
        content = [
            {"type": "image", "text": None},
            {"type": "text", "text": "Which one?"},
            {"type": "image", "text": None},
        ]
        assert question_text([{"role": "user", "content": content}]) == "<image>Which one?<image>"

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            (None, "neither a text nor a list of messages: None"),
            (["Which?"], "neither a text nor a list of messages"),
            ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "roles are"),
            ([{"role": "system", "content": "a"}], "roles are"),
            ([{"role": "user", "content": None}], "content is neither"),
            ([{"role": "user", "content": [{"type": "video"}]}], "neither an image nor a text"),
            ([{"role": "user", "content": [{"type": "text", "text": None}]}], "neither an image nor a text"),
        ],
    )
    def test_everything_else_is_refused(self, cell, message):
        with pytest.raises(ValueError, match=message):
            question_text(cell)


@pytest.mark.parametrize(("cell", "expected"), [(" left ", "left"), (3, "3"), (3.0, "3"), (3.5, "3.5"), (True, "True")])
def test_numbers_become_texts(cell, expected):
    assert plain_text(cell) == expected


@pytest.mark.parametrize("cell", [None, float("nan"), ["left"], {"answer": "left"}])
def test_what_is_no_text_and_no_number_is_refused(cell):
    with pytest.raises(ValueError, match="expected a text or a number"):
        plain_text(cell)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("<answer> 3 </answer>", "3"), ("<think>a 2?</think>\n<answer>\n(B) no\n</answer>", "(B) no"), ("(B)", "(B)")],
)
def test_a_solution_is_what_its_tags_hold(cell, expected):
    assert solution_text(cell) == expected


@pytest.mark.parametrize("cell", ["", "  ", "<answer> </answer>", "<answer>3", "<answer>3</answer><answer>4</answer>"])
def test_a_solution_without_one_answer_is_refused(cell):
    with pytest.raises(ValueError, match="the solution holds no answer"):
        solution_text(cell)
