"""Accuracy, Format, Groups, Length, and measuring several at once."""

from __future__ import annotations

import math

import pytest

from visual_r1.metrics.accuracy import Accuracy
from visual_r1.metrics.format import Format
from visual_r1.metrics.groups import Groups
from visual_r1.metrics.length import Length
from visual_r1.metrics.measure import measure
from visual_r1.metrics.reflection import Reflection
from visual_r1.metrics.repetition import Repetition

RIGHT, WRONG = "<answer>B</answer>", "<answer>A</answer>"
EVERY = [Accuracy(), Format(), Groups(), Length(), Reflection(phrases=("wait",)), Repetition(ngram=2)]


def test_accuracy_by_category(rollout):
    rollouts = [
        rollout(RIGHT, category="Count"),
        rollout(WRONG, category="Count"),
        rollout(RIGHT, category="Depth"),
        rollout("B", category="Count"),
    ]
    assert Accuracy()(rollouts) == {"accuracy": 1 / 2, "accuracy/Count": pytest.approx(1 / 3), "accuracy/Depth": 1.0}


def test_format(rollout):
    rollouts = [
        rollout("<think>x</think><answer>B</answer>"),
        rollout("<think> . </think><answer>A or B</answer>"),
        rollout("<answer>A</answer>"),
        rollout("<think>x</think><answer>A</answer>", is_truncated=True),
        rollout("</think><answer>A</answer>", prompt_opens_think=True),
    ]
    assert Format()(rollouts) == {
        "format/well_formed_rate": 1 / 5,
        "format/empty_thought_rate": 2 / 5,
        "format/parse_rate": 4 / 5,
        "format/truncated_rate": 1 / 5,
    }


def test_repetition(rollout):
    rollouts = [
        rollout("one two three"),
        rollout("wait and wait and wait and"),  # five pairs, two of them different
        rollout("a b a b c"),  # four pairs, three of them different
        rollout(""),
    ]
    assert Repetition(ngram=2)(rollouts) == pytest.approx(
        {"repetition/repeated_rate": (3 / 5 + 1 / 4) / 4, "repetition/looping_rate": 1 / 4}
    )


@pytest.mark.parametrize(
    ("groups", "shares"),
    [
        pytest.param([[1, 1], [0, 0], [0, 1], [1, 0]], (1 / 4, 1 / 4, 1 / 2), id="groups-of-two"),
        pytest.param([[1, 1, 1, 0], [0]], (0.0, 1 / 2, 1 / 2), id="groups-of-several-sizes"),
    ],
)
def test_groups(rollout, groups, shares):
    rollouts = [
        rollout(RIGHT if right else WRONG, example_id=str(index))
        for index, group in enumerate(groups)
        for right in group
    ]
    names = ("groups/all_correct", "groups/all_wrong", "groups/mixed")
    assert Groups()(rollouts) == pytest.approx(dict(zip(names, shares, strict=True)))


def test_groups_of_one_example_apart_from_each_other_are_two(rollout):
    rollouts = [rollout(RIGHT, example_id=name) for name in "aab"] + [rollout(WRONG, example_id="a")]
    assert Groups()(rollouts)["groups/mixed"] == 0.0


def test_without_a_second_rollout_of_any_example_there_are_no_groups(rollout):
    assert Groups()([rollout(RIGHT, example_id="a"), rollout(WRONG, example_id="b")]) == {}


def test_length(rollout):
    rollouts = [
        rollout(RIGHT, num_tokens=10, num_thought_tokens=6),
        rollout(WRONG, num_tokens=30, num_thought_tokens=20),
        rollout(WRONG, num_tokens=100, num_thought_tokens=None),
    ]
    assert Length()(rollouts) == {
        "length/thought/mean": 13.0,
        "length/answer/mean": 7.0,
        "length/correct/mean": 10.0,
        "length/incorrect/mean": 65.0,
    }


def test_an_empty_thought_has_a_length(rollout):
    values = Length()([rollout("</think>" + RIGHT, num_tokens=8, num_thought_tokens=0, prompt_opens_think=True)])
    assert values == {"length/thought/mean": 0.0, "length/answer/mean": 8.0, "length/correct/mean": 8.0}


def test_a_mean_over_nothing_is_absent(rollout):
    values = measure(EVERY, [rollout(WRONG)])
    assert "length/correct/mean" not in values
    assert "length/thought/mean" not in values
    assert "reflection/any_rate_correct" not in values
    assert "length/incorrect/mean" in values
    assert all(map(math.isfinite, values.values()))


def test_no_rollouts_measure_nothing():
    assert measure(EVERY, []) == {}


def test_two_metrics_of_one_name_are_refused(rollout):
    with pytest.raises(ValueError, match="two metrics measure accuracy, accuracy/Relation"):
        measure([Accuracy(), Accuracy()], [rollout(RIGHT)])
