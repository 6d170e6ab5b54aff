"""The strict reading of completions, on which every reward, metric and evaluation stands."""

from __future__ import annotations

import pytest

from visual_r1.parsing import (
    is_correct,
    is_empty,
    is_well_formed,
    named_letter,
    parse_answer,
    parse_choice,
    parse_thought,
)
from visual_r1.prompts import PROMPT_STYLES


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        pytest.param("<think> left of it </think>", "left of it", id="closed"),
        pytest.param("<think>a\nb</think>", "a\nb", id="over-lines"),
        pytest.param("<think></think>", "", id="empty-is-not-absent"),
        pytest.param("so <think>x</think> y", "x", id="text-around"),
        pytest.param("<think>a</think><think>b</think>", "a", id="the-first"),
        pytest.param("<think>a<think>b</think>", "a<think>b", id="nested-tag-belongs-to-it"),
        pytest.param("<think>never closed", None, id="unclosed"),
        pytest.param("never opened</think>", None, id="unopened"),
        pytest.param("</think>x<think>", None, id="reversed"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_parse_thought(text, thought):
    assert parse_thought(text) == thought


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param("<answer>B</answer>", "B", id="answer"),
        pytest.param("<answer>\n (B) \n</answer>", "(B)", id="over-lines"),
        pytest.param("<answer></answer>", "", id="empty-is-not-absent"),
        pytest.param("<think>x</think><answer>B</answer> and more", "B", id="trailing-text"),
        pytest.param("<think>x<answer>B</answer>", "B", id="thought-never-closed"),
        pytest.param("<think>x<answer>B</answer></think>", None, id="inside-the-thought"),
        pytest.param("<think>x<answer>B</think></answer>", None, id="opened-inside-the-thought"),
        pytest.param("<think>x<answer>A</answer></think><answer>B</answer>", None, id="inside-the-thought-and-after"),
        pytest.param("<answer>A</answer><answer>B</answer>", None, id="two"),
        pytest.param("<answer>B</answer><answer>B</answer>", None, id="twice-the-same"),
        pytest.param("<answer>A<answer>B</answer>", None, id="nested-opening"),
        pytest.param("<answer>B</answer></answer>", None, id="two-closings"),
        pytest.param("<answer>B", None, id="unclosed"),
        pytest.param("B</answer>", None, id="unopened"),
        pytest.param("</answer>B<answer>", None, id="reversed"),
        pytest.param("<ANSWER>B</ANSWER>", None, id="another-tag"),
        pytest.param("It must be B.", None, id="untagged"),
    ],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        pytest.param("B", "B", id="letter"),
        pytest.param("b", "B", id="lower-case"),
        pytest.param("(B)", "B", id="as-the-prompt-prints-it"),
        pytest.param("(b).", "B", id="full-stop"),
        pytest.param(" B \n", "B", id="blanks"),
        pytest.param("trash can", "B", id="words"),
        pytest.param("Trash can", "B", id="words-with-a-capital"),
        pytest.param("TRASH CAN.", "B", id="words-with-a-full-stop"),
        pytest.param("(B) trash can", "B", id="letter-and-words"),
        pytest.param("(b)Trash can.", "B", id="letter-and-words-without-a-blank"),
        pytest.param("(A) trash can", None, id="letter-and-words-disagree"),
        pytest.param("(C) trash can", None, id="letter-of-no-choice-and-words"),
        pytest.param("the trash can", None, id="article"),
        pytest.param("a trash can", None, id="article-that-is-a-letter"),
        pytest.param("It is a desk", None, id="words-in-a-sentence"),
        pytest.param("A or B", None, id="two-letters"),
        pytest.param("A, B", None, id="two-letters-listed"),
        pytest.param("(A)(B)", None, id="two-letters-in-brackets"),
        pytest.param("desk, trash can", None, id="two-choices-in-words"),
        pytest.param("C", None, id="letter-of-no-choice"),
        pytest.param("Z", None, id="last-letter"),
        pytest.param("(A", None, id="open-bracket"),
        pytest.param("B..", None, id="two-full-stops"),
        pytest.param("", None, id="empty"),
        pytest.param(".", None, id="full-stop-only"),
    ],
)
def test_parse_choice(answer, letter):
    assert parse_choice(answer, ("desk", "trash can")) == letter


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        pytest.param("3", ("1", "2", "3", "4"), "C", id="number"),
        pytest.param("three", ("1", "2", "3", "4"), None, id="number-in-words"),
        pytest.param("33", ("1", "2", "3", "4"), None, id="another-number"),
        pytest.param("3.0", ("1", "2", "3", "4"), None, id="another-spelling-of-the-number"),
        pytest.param("A", ("B", "A"), None, id="letter-of-one-is-the-words-of-another"),
        pytest.param("(A)", ("B", "A"), "A", id="brackets-decide-it"),
        pytest.param("B", ("A", "B"), "B", id="letter-and-words-agree"),
        pytest.param("U.S.", ("U.S.", "U.K."), "A", id="choice-ends-in-a-full-stop"),
        pytest.param("U.S", ("U.S.", "U.K."), "A", id="its-full-stop-left-out"),
        pytest.param("", (".", "left"), None, id="empty-answer-and-a-choice-without-words"),
        pytest.param(".", (".", "left"), None, id="full-stop-and-a-choice-without-words"),
        pytest.param("straße", ("STRASSE", "Platz"), "A", id="case-folding"),
        pytest.param("\u017f", tuple(map(str, range(26))), None, id="long-s-is-no-letter"),
        pytest.param("\uff22", ("left", "right"), None, id="full-width-letter-is-no-letter"),
    ],
)
def test_parse_choice_among(answer, choices, letter):
    assert parse_choice(answer, choices) == letter


# The paper's accuracy and format functions and its CV-Bench scorer disagree with one another on these completions
# (arXiv 2503.05132, released code). Here one rule holds for training and evaluation. Each completion starts inside the
# thought, as the base prompt has it.
PAPER_CASES = [
    pytest.param("x</think>\n<answer>chair</answer>", True, True, id="as-asked"),
    pytest.param("x</think>\n<answer>Chair</answer>", True, True, id="capital"),
    pytest.param("x</think>\n<answer>chair.</answer>", True, True, id="full-stop"),
    pytest.param("x</think>\n<answer>\nchair\n</answer>", True, True, id="line-breaks"),
    pytest.param("x</think>\n<answer>the chair</answer>", False, True, id="article"),
    pytest.param("</think><answer>chair</answer>", True, False, id="empty-thought"),
    pytest.param(" .. \n</think><answer>chair</answer>", True, False, id="thought-of-dots"),
    pytest.param("x</think><answer>chair</answer><answer>table</answer>", False, False, id="second-answer"),
    pytest.param("x</think><answer>chair</answer><answer>chair</answer>", False, False, id="same-answer-twice"),
    pytest.param("wait <think> y </think> z </think><answer>chair</answer>", True, False, id="nested-tags"),
    pytest.param("x</think><answer>chair</answer> trailing", True, False, id="trailing-text"),
    pytest.param("x</think><answer>chair", False, False, id="answer-unclosed"),
    pytest.param("x <answer>chair</answer>", True, False, id="thought-unclosed"),
    pytest.param("x <answer>chair</answer> y</think>", False, False, id="answer-inside-the-thought"),
    pytest.param("x <answer>table</answer></think><answer>chair</answer>", False, False, id="answer-inside-and-after"),
    pytest.param("x</think> so <answer>chair</answer>", True, False, id="text-between"),
    pytest.param("x</think><answer></answer>", False, False, id="empty-answer"),
    pytest.param("I see the chair, no tags", False, False, id="no-tags"),
    pytest.param("I see a dog.", False, False, id="article-a-in-a-sentence"),
    pytest.param("x</think><answer>a</answer>", True, True, id="letter-a-alone"),
    pytest.param("There is a chair and a table.", False, False, id="both-named-untagged"),
    pytest.param("the table is closer than the chair", False, False, id="last-named-untagged"),
    pytest.param("x</think><answer>The chair is closer than the table.</answer>", False, True, id="sentence"),
    pytest.param("x</think><answer>A or B</answer>", False, True, id="hedge"),
    pytest.param("x</think><answer>(A) chair</answer>", True, True, id="letter-and-words"),
    pytest.param("x</think><answer>(B) chair</answer>", False, True, id="letter-and-words-disagree"),
    pytest.param("", False, False, id="nothing"),
]


@pytest.mark.parametrize(("completion", "correct", "well_formed"), PAPER_CASES)
def test_the_cases_of_the_paper(rollout, completion, correct, well_formed):
    case = rollout(completion, choices=("chair", "table"), solution="A", prompt_opens_think=True)
    assert is_correct(case) == correct
    assert is_well_formed(case.text) == well_formed


@pytest.mark.parametrize("text", ["I count 1, 2, 3 chairs, so 4", "x</think><answer>four</answer>", "x</think>4"])
def test_a_number_is_not_searched_for(rollout, text):
    case = rollout(text, choices=("1", "2", "3", "4"), solution="D", prompt_opens_think=True)
    assert named_letter(case) is None
    assert not is_correct(case)


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        pytest.param("<think>x</think><answer>B</answer>", True, id="tight"),
        pytest.param(" <think>x</think> \n\n <answer>B</answer>\n", True, id="blanks"),
        pytest.param("<think>x</think><answer>whatever</answer>", True, id="any-answer"),
        pytest.param("<answer>B</answer><think>x</think>", False, id="reversed"),
        pytest.param("Sure! <think>x</think><answer>B</answer>", False, id="text-before"),
        pytest.param("<think>x<answer>B</think></answer>", False, id="crossed"),
        pytest.param("<think>x<answer>B</answer></think>", False, id="inside"),
        pytest.param("<think><think>x</think><answer>B</answer>", False, id="opened-twice"),
        pytest.param("<think>x</think></think><answer>B</answer>", False, id="closed-twice"),
        pytest.param("<answer>B</answer>", False, id="no-thought"),
        pytest.param("<think>x</think>B", False, id="no-answer"),
        pytest.param("<think>x</think><answer>...</answer>", False, id="answer-of-dots"),
    ],
)
def test_is_well_formed(text, well_formed):
    assert is_well_formed(text) == well_formed


@pytest.mark.parametrize(("text", "empty"), [("", True), (" \n", True), ("...!?", True), ("3", False), ("左", False)])
def test_is_empty(text, empty):
    assert is_empty(text) == empty


@pytest.mark.parametrize("style", PROMPT_STYLES.values(), ids=lambda style: style.name)
@pytest.mark.parametrize("solution", ["A", "B"])
def test_what_sft_imitates_is_correct(rollout, style, solution):
    example = rollout("", solution=solution).example
    imitated = rollout(style.answer_only(example), solution=solution, prompt_opens_think=style.opens_think)
    assert is_correct(imitated)
