"""WellFormed and Hard."""

from __future__ import annotations

import pytest

from visual_r1.rewards.format import WellFormed
from visual_r1.rewards.hard import Hard


@pytest.mark.parametrize(
    ("completion", "well_formed", "hard"),
    [
        pytest.param("<think>x</think><answer>B</answer>", 1.0, 1.0, id="right"),
        pytest.param("<think>x</think><answer>A</answer>", 1.0, 0.0, id="wrong"),
        pytest.param("<think></think><answer>B</answer>", 0.0, 0.0, id="right-without-a-thought"),
        pytest.param("<answer>B</answer>", 0.0, 0.0, id="right-without-tags-of-a-thought"),
        pytest.param("<think>x</think><answer>A</answer><answer>B</answer>", 0.0, 0.0, id="hedged"),
    ],
)
def test_well_formed_and_hard(rollout, completion, well_formed, hard):
    assert WellFormed()(rollout(completion)) == well_formed
    assert Hard()(rollout(completion)) == hard


@pytest.mark.parametrize("reward", [WellFormed(), Hard()])
def test_a_truncated_rollout_scores_nothing(rollout, reward):
    assert reward(rollout("<think>x</think><answer>B</answer>", is_truncated=True)) == 0.0


@pytest.mark.parametrize("reward", [WellFormed(), Hard()])
def test_the_prompt_may_have_opened_the_thought(rollout, reward):
    assert reward(rollout("x</think><answer>B</answer>", prompt_opens_think=True)) == 1.0
    assert reward(rollout("x</think><answer>B</answer>", prompt_opens_think=False)) == 0.0
