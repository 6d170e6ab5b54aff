"""No completion, however malformed, makes a parser, a reward or a metric raise, hang or leave its range."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_r1 import parsing
from visual_r1.metrics.accuracy import Accuracy
from visual_r1.metrics.format import Format
from visual_r1.metrics.groups import Groups
from visual_r1.metrics.length import Length
from visual_r1.metrics.measure import measure
from visual_r1.metrics.reflection import Reflection
from visual_r1.rewards.weighted import WeightedReward, score

CONF = Path(__file__).parents[1] / "conf"
LISTS = [yaml.safe_load(path.read_text()) for path in (CONF / "keywords").glob("*.yaml")]
METRICS = [
    Accuracy(),
    Format(),
    Groups(),
    Length(),
    Reflection(phrases=tuple({word.strip("*"): word for values in LISTS for word in values["phrases"]}.values())),
]
CHOICES = [("left", "right"), ("3", "2", "4"), ("A", "B"), ("B", "A"), ("(a) x", ".", "x")]

PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<answer", "(A)", "(B)", "A", "b", "left", "right", "3", "."]
completions = st.lists(
    st.sampled_from([*PIECES, " ", "\n", "wait", "let me check again"]) | st.text(st.characters(), max_size=8),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def rewards(build_term):
    terms = sorted(path.stem for path in (CONF / "reward" / "term").glob("*.yaml") if path.stem != "trl_function")
    assert "accuracy" in terms
    return [WeightedReward(name=term, weight=1.0, function=build_term(term)) for term in terms]


def check(case, rewards):
    letter = parsing.named_letter(case)
    assert letter is None or letter in case.example.letters
    parsing.is_empty(case.completion)
    scores = score(rewards, case)
    assert all(isinstance(value, float) and 0.0 <= value <= 1.0 for value in scores.values())
    values = measure(METRICS, [case])
    assert all(math.isfinite(value) and value >= 0.0 for value in values.values())
    shares = [name for name in values if name.endswith("rate") or name.startswith(("accuracy", "groups"))]
    assert shares
    assert all(values[name] <= 1.0 for name in shares)
    return scores


@settings(max_examples=300, deadline=None)
@given(
    completion=completions,
    choices=st.sampled_from(CHOICES),
    num_tokens=st.integers(0, 2000),
    is_truncated=st.booleans(),
    prompt_opens_think=st.booleans(),
)
def test_any_completion(rollout, rewards, completion, choices, num_tokens, is_truncated, prompt_opens_think):
    case = rollout(
        completion,
        choices=choices,
        num_tokens=num_tokens,
        num_thought_tokens=num_tokens // 2 if "</think>" in completion else None,
        is_truncated=is_truncated,
        prompt_opens_think=prompt_opens_think,
    )
    scores = check(case, rewards)
    if completion.count("<answer>") != 1 or completion.count("</answer>") != 1:
        assert scores["accuracy"] == 0.0
    assert scores["hard"] == min(scores["accuracy"], scores["format"])


@settings(max_examples=200, deadline=None)
@given(
    before=st.sampled_from(PIECES) | st.text(st.characters(), max_size=5), after=st.text(st.characters(), max_size=5)
)
def test_only_the_answer_itself_is_read(rollout, before, after):
    """A right answer with anything of words before or after it inside its tags is no answer."""
    words = before + "B" + after
    case = rollout(f"<think>x</think><answer>{words}</answer>")
    if parsing.is_correct(case):
        assert words.strip().strip("().").strip() in {"B", "b"}


UNITS = ["a", "A ", "<think>", "</think>", "<answer>", "</answer>", "<answer>B</answer>", "(", "(a) ", " ", "\n", "<"]
UNITS += ["let me ", "let\n", "wait ", "wait , let me check again . ", "-", "!", "\u0301", "\U0001f600", "left", "ß"]


@pytest.mark.parametrize("form", ["{}", "x</think><answer>(a){}x</answer>"])
@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_a_very_long_completion_takes_less_than_a_second(rollout, rewards, unit, form):
    completion = form.replace("{}", unit * (100_000 // len(unit)))
    start = time.process_time()
    check(rollout(completion, prompt_opens_think=True, num_tokens=100_000, is_truncated=True), rewards)
    assert time.process_time() - start < 1.0
