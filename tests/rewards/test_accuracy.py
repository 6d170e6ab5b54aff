"""ChoiceAccuracy: the table of strict scoring is in tests/test_parsing.py; here, what the reward makes of it."""

from __future__ import annotations

import pytest

from visual_r1.rewards.accuracy import ChoiceAccuracy


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        pytest.param("<answer>B</answer>", 1.0, id="letter"),
        pytest.param("<answer>(b)</answer>", 1.0, id="letter-as-the-prompt-prints-it"),
        pytest.param("<answer>Right.</answer>", 1.0, id="the-choice-in-words"),
        pytest.param("<answer>A</answer>", 0.0, id="wrong"),
        pytest.param("It must be B.", 0.0, id="right-but-untagged"),
        pytest.param("<answer>A</answer><answer>B</answer>", 0.0, id="hedged"),
        pytest.param("<think>B</think><answer>A</answer>", 0.0, id="right-in-the-thought-only"),
    ],
)
def test_choice_accuracy(rollout, completion, score):
    assert ChoiceAccuracy()(rollout(completion)) == score


def test_the_thought_that_the_prompt_opened_is_seen(rollout):
    completion = "maybe <answer>B</answer> </think>"
    assert ChoiceAccuracy()(rollout(completion, prompt_opens_think=True)) == 0.0
    assert ChoiceAccuracy()(rollout(completion, prompt_opens_think=False)) == 1.0
