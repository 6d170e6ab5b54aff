"""Weighted rewards and their scores."""

from __future__ import annotations

import pytest

from visual_r1.rewards.accuracy import ChoiceAccuracy
from visual_r1.rewards.format import WellFormed
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.trl_function import TrlFunction
from visual_r1.rewards.weighted import WeightedReward, score


def weighted(name, weight, function):
    return WeightedReward(name=name, weight=weight, function=function)


def test_scores_stand_by_name_and_without_their_weights(rollout):
    rewards = [
        weighted("accuracy", 1.0, ChoiceAccuracy()),
        weighted("format", 0.0, WellFormed()),
        weighted("length", -0.5, LengthBonus(per_token=0.01)),
    ]
    scores = score(rewards, rollout("<think>x</think><answer>B</answer>", num_tokens=40))
    assert scores == {"accuracy": 1.0, "format": 1.0, "length": 0.4}


def test_two_rewards_of_one_name_are_refused(rollout):
    with pytest.raises(ValueError, match="two rewards are named x"):
        score([weighted("x", 1.0, ChoiceAccuracy()), weighted("x", 1.0, WellFormed())], rollout(""))


@pytest.mark.parametrize("value", [1.01, -0.01, float("nan")])
def test_a_score_outside_its_range_stops_the_run(rollout, value):
    with pytest.raises(ValueError, match="reward x: the score is"):
        score([weighted("x", 1.0, lambda _: value)], rollout(""))


def test_a_function_of_trl_does_not_score_a_rollout(rollout):
    function = TrlFunction("collections.Counter")  # takes any argument by name
    with pytest.raises(TypeError, match=r"reward mine: collections\.Counter scores trl's batches"):
        score([weighted("mine", 1.0, function)], rollout(""))


@pytest.mark.parametrize(("name", "weight"), [("", 1.0), (" ", 1.0), ("x", float("nan")), ("x", float("inf"))])
def test_a_wrong_setting_is_refused(name, weight):
    with pytest.raises(ValueError):
        weighted(name, weight, ChoiceAccuracy())
