"""The paper's two rewards, case by case as its released code scored them, and against its two expressions."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_r1.rewards.paper_accuracy import PaperAccuracy
from visual_r1.rewards.paper_format import PaperFormat

CHAIR = {"choices": ("table", "chair"), "solution": "B"}
NUMBER = {"choices": ("2", "3"), "solution": "B"}


def written(rollout, completion, *, words, prompt_opens_think=True, **question):
    """A rollout of an example whose data writes the solution so; None for data that has the letter alone."""
    case = rollout(completion, prompt_opens_think=prompt_opens_think, **question)
    return replace(case, example=replace(case.example, solution_as_written=words))


@pytest.mark.parametrize(
    ("completion", "accuracy", "form"),
    [
        ("x</think>\n<answer>chair</answer>", 1, 1),
        ("x</think><answer>Chair</answer>", 0, 1),
        ("x</think><answer>chair.</answer>", 0, 1),
        ("x</think><answer>the chair</answer>", 0, 1),
        ("x</think><answer>\nchair\n</answer>", 0, 1),
        ("x</think><answer> chair </answer>", 1, 1),
        ("</think><answer>chair</answer>", 1, 1),
        ("x</think><answer>chair</answer><answer>table</answer>", 1, 1),
        ("x</think><answer>table</answer><answer>chair</answer>", 0, 1),
        ("But wait! <think> y </think> z </think><answer>chair</answer>", 1, 1),
        ("x</think><answer>chair</answer> trailing", 1, 0),
        ("x</think> so <answer>chair</answer>", 1, 0),
        ("x</think>\n<answer>\nno</answer>\n<answer>chair</answer>", 1, 1),
        ("x</think><answer>chair", 0, 0),
        ("<answer>chair</answer>", 1, 0),
        ("chair", 1, 0),
        ("\n chair \n", 1, 0),
        ("", 0, 0),
    ],
)
def test_a_completion_is_scored_as_the_released_code_did(rollout, completion, accuracy, form):
    case = written(rollout, completion, words="chair", **CHAIR)
    assert (PaperAccuracy()(case), PaperFormat()(case)) == (accuracy, form)


def test_an_untagged_count_earns_nothing(rollout):
    case = written(rollout, "I see 3 chairs, no tags", words="3", **NUMBER)
    assert (PaperAccuracy()(case), PaperFormat()(case)) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "solution", "score"),
    [
        ("B", None, 1),
        ("(B)", None, 1),
        ("option B", None, 1),
        ("A or (B)", None, 1),
        ("(B) or A", None, 0),  # the last one counts
        ("(B) or a", None, 1),  # of the capitals
        ("B.", None, 0),
        ("b", None, 0),
        ("right", None, 0),
        ("(B)", "(B)", 1),
        ("B", "(B)", 0),  # the data writes more than a letter, so only its very words count
        ("B", "right", 0),
    ],
)
def test_a_lone_letter_counts_where_the_data_writes_one(rollout, answer, solution, score):
    assert PaperAccuracy()(written(rollout, f"x</think><answer>{answer}</answer>", words=solution)) == score


def test_an_instruct_completion_brings_its_own_opening_tag(rollout):
    completion = "<think>x</think> <answer>right</answer>"
    assert PaperFormat()(rollout(completion, prompt_opens_think=False)) == 1.0
    assert PaperFormat()(rollout(completion.removeprefix("<think>"), prompt_opens_think=False)) == 0.0
    assert PaperFormat()(rollout(" " + completion, prompt_opens_think=False)) == 0.0
    assert PaperFormat()(rollout(completion, prompt_opens_think=True)) == 1.0  # nested, and accepted


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<answer", "\n", " ", "\r", "\u2028", "chair", "Chair", "."]
completions = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=500, deadline=None)
@given(completion=completions, opens=st.booleans())
def test_linear_time_reads_what_the_published_expressions_read(rollout, completion, opens):
    case = written(rollout, completion, words="chair", prompt_opens_think=opens, **CHAIR)
    found = re.search(r"<answer>(.*?)</answer>", completion)
    assert PaperAccuracy()(case) == float((found[1] if found else completion).strip() == "chair")
    is_match = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", case.text, re.DOTALL) is not None
    assert PaperFormat()(case) == float(is_match)
