"""The paper's rule, quirk by quirk, against its own library: what math-verify 0.5.2 says of 2,633 responses."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_r1.files import read_json
from visual_r1.scoring.reference import Reference, tagged_answer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = read_json(Path(__file__).with_name("reference_verdicts.json"))
REFERENCE = Reference()

# What this rule decides otherwise than math-verify 0.5.2: of 69,302 responses that were compared when it was written,
# these six, each with a percent sign or an exclamation mark inside a formula.
DIFFERENT = {
    "$50%$ or $7$",
    "<answer>$50%$ or $7$</answer>",
    "so [ 50% or 5 ] is",
    "so [ 5, 50% ] is",
    "$$ 50% or 5 $$",
    "$x = A lamp!$",
}


def letters_judged_right(rollout, response, choices):
    """The letters that would have been right answers, as tools/reference_verdicts.py writes them."""
    letters = "ABCDEF"[: len(choices)]
    return "".join(
        letter for letter in letters if REFERENCE(rollout(response, choices=tuple(choices), solution=letter))
    )


def test_the_verdicts_are_those_of_the_papers_library(rollout):
    assert "math-verify 0.5.2" in GOLDEN["made_by"]
    cases = [
        (response, question["choices"], expected)
        for question in GOLDEN["questions"]
        for response, expected in question["responses"]
    ]
    assert len(cases) == 2633 and sum(bool(expected) for *_, expected in cases) > 1000
    different = {
        response
        for response, choices, expected in cases
        if letters_judged_right(rollout, response, choices) != expected
    }
    assert different == DIFFERENT


KNOWN = {
    "the article is answer A": ("I see a dog.", "A", ("left", "right"), True),
    "the last object decides, chair": ("There is a chair and a table.", "A", ("chair", "table"), True),
    "the last object decides, table": ("There is a chair and a table.", "B", ("chair", "table"), False),
    "a comparison, chair": ("the chair is closer than the table", "A", ("chair", "table"), False),
    "a comparison, table": ("the chair is closer than the table", "B", ("chair", "table"), True),
    "a tagged sentence that ends in the other": (
        "<answer>The table is closer to the camera than the chair.</answer>",
        "B",
        ("chair", "table"),
        False,
    ),
    "a hedge, first letter": ("<answer>A or B</answer>", "A", ("chair", "table"), True),
    "a hedge, second letter": ("<answer>A or B</answer>", "B", ("chair", "table"), False),
    "the last number of several": ("I count 1, 2, 3 chairs, so 4", "D", ("1", "2", "3", "4"), True),
    "a capital that the data has not": ("<answer>Trash can</answer>", "B", ("desk", "trash can"), False),
    "a number in words": ("<answer>three</answer>", "C", ("1", "2", "3", "4"), False),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_verdicts(rollout, name):
    response, solution, choices, expected = KNOWN[name]
    assert REFERENCE(rollout(response, solution=solution, choices=choices)) is expected


# The responses that the paper's training reward is known by; the evaluator takes most of what training did not.
TRAINED = {
    "x</think>\n<answer>chair</answer>": True,
    "x</think><answer>Chair</answer>": False,
    "x</think><answer>chair.</answer>": True,
    "x</think><answer>the chair</answer>": True,
    "x</think><answer>\nchair\n</answer>": True,
    "</think><answer>chair</answer>": True,
    "x</think><answer>chair</answer><answer>table</answer>": True,
    "But wait! <think> y </think> z </think><answer>chair</answer>": True,
    "x</think><answer>chair</answer> trailing": True,
}


@pytest.mark.parametrize("response", TRAINED)
def test_responses_of_training(rollout, response):
    assert REFERENCE(rollout(response, choices=("chair", "table"), solution="A")) is TRAINED[response]


@pytest.mark.parametrize("response", ["I see 3 chairs, no tags", "**3**", "answer: x = 3", r"\boxed{3}", "3 - it is"])
def test_a_number_without_tags_is_found(rollout, response):
    assert REFERENCE(rollout(response, choices=("1", "2", "3"), solution="C"))


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("x <answer> chair </answer> y", "chair"),
        ("<answer>\n chair\n\n</answer>", "chair"),
        ("<answer>a\nb</answer> <answer>c</answer>", "c"),
        ("<answer>a <answer>b</answer></answer>", "a <answer>b"),
        ("<answer>a\n<answer>b</answer>", "b"),
        ("<answer></answer><answer>b</answer>", ""),
        ("<answer>b", None),
        ("b</answer>", None),
        ("<Answer>b</Answer>", None),
    ],
)
def test_the_first_tag_on_one_line_is_the_answer(response, found):
    assert tagged_answer(response) == found


def test_without_a_tag_or_with_an_empty_one_the_whole_response_is_scored(rollout):
    responses = ("<answer>right</answer> left", "<answer> </answer> right", "right", "<answer>x</answer>")
    read = [(REFERENCE.is_read(case), REFERENCE(case)) for case in map(rollout, responses)]
    assert read == [(True, True), (False, True), (False, True), (True, False)]


def test_the_completion_is_scored_without_the_think_tag_of_the_prompt(rollout):
    # The reference decodes what was generated. "<think>right" would hold no choice: a blank must stand before it.
    assert REFERENCE(rollout("right", prompt_opens_think=True))


PIECES = ["<answer>", "</answer>", "A", "b", "(a)", "right", "3", ".", " ", "\n", "Answer:", "final answer is", "or"]
PIECES += ["$", "\\(", "\\)", "\\boxed{", "}", "\\frac", "\\text{", "^", "_", "|", "!", "=", "+", "**", "%", "[", "]"]


@settings(max_examples=300, deadline=None)
@given(response=st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=4), max_size=30).map("".join))
def test_no_response_raises(rollout, response):
    for choices in (("left", "right"), ("3", "2", "4"), ("(a", "$b$"), ("A", "B"), ("a.b", "\\")):
        case = rollout(response, choices=choices)
        assert REFERENCE(case) in (True, False) and REFERENCE.is_read(case) in (True, False)


# Each takes the library's own expressions or its parser minutes or more, at this length or at a tenth of it.
SLOW = {
    "stars after a number": "final answer is 1{}x".replace("{}", "*" * 100_000),
    "blanks after a number": "1" + " " * 100_000 + "x",
    "numbers": "1 " * 50_000,
    "sums": "answer: " + "1+" * 50_000 + "x",
    "blanks in a tag": "<answer>" + " " * 100_000,
    "opening tags": "<answer>\nx\n" * 9_000,
    "answers": "answer " * 14_000,
    "articles": "a " * 50_000,
    "boxes": "\\[\\boxed{1}" * 9_000,
    "dollars": "$ a" * 33_000,
    "brackets": "$" + "(" * 500 + "$",
    "subscripts": "$" + "x_" * 45 + "x$",
    "bars": "$" + "|1" * 45 + "$",
    "a large binomial": r"$\binom{99999999}{4999999}$",
    "a large divisor": r"$\gcd(9^{9^{9}},6)$",
    "a tower": r"$9^{9^{9^{9^{9}}}}$",
    "digits": "9" * 100_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_no_response_takes_long(rollout, name):
    REFERENCE(rollout("$1$"))  # loads what formulas need
    start = time.process_time()
    assert not REFERENCE(rollout(SLOW[name], choices=("left", "right"))) or name == "articles"
    assert time.process_time() - start < 3.0


def test_it_works_in_a_thread(rollout):
    # The library stops itself by a signal, which only the main thread can take.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(REFERENCE, rollout("The answer is $B$")).result()


def test_a_response_without_a_formula_loads_no_sympy():
    code = (
        "import sys\n"
        "from visual_r1.scoring.extraction import extracted_texts\n"
        "assert extracted_texts('I see a dog, 3 + 4 = 7', ('left', 'right')) == {'7'}\n"
        "loaded = {'sympy', 'math_verify', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
