"""The rewards that look at length: LengthBonus, LengthPenalty, Cosine, Overlong."""

from __future__ import annotations

import pytest

from visual_r1.rewards.cosine import Cosine
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.length_penalty import LengthPenalty
from visual_r1.rewards.overlong import Overlong

RIGHT, WRONG = "<answer>B</answer>", "<answer>A</answer>"
PUBLISHED = {
    "correct_at_zero": 2.0,
    "correct_at_limit": 1.0,
    "wrong_at_zero": -10.0,
    "wrong_at_limit": 0.0,
    "exceeded": -10.0,
}


@pytest.mark.parametrize(("num_tokens", "score"), [(0, 0.0), (1, 0.001), (700, 0.7), (1000, 1.0), (50_000, 1.0)])
@pytest.mark.parametrize("completion", [RIGHT, WRONG, "no answer"])
def test_length_bonus_pays_every_token(rollout, completion, num_tokens, score):
    assert LengthBonus(per_token=0.001)(rollout(completion, num_tokens=num_tokens)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("completion", "num_tokens", "score"),
    [(RIGHT, 0, 1.0), (RIGHT, 25, 0.75), (RIGHT, 100, 0.0), (RIGHT, 300, 0.0), (WRONG, 25, 0.0), ("", 1, 0.0)],
)
def test_length_penalty_pays_what_a_right_answer_saved(rollout, completion, num_tokens, score):
    assert LengthPenalty(limit_tokens=100)(rollout(completion, num_tokens=num_tokens)) == score


@pytest.mark.parametrize(
    ("completion", "num_tokens", "value"),
    [  # on the published scale, -10 to 2; a cosine is half-way at half the limit, and at (2 + sqrt 2) / 4 at a quarter
        (RIGHT, 0, 2.0),
        (RIGHT, 25, 1.0 + 0.8535534),
        (RIGHT, 50, 1.5),
        (RIGHT, 99, 1.000247),
        (WRONG, 0, -10.0),
        (WRONG, 25, -10.0 * 0.8535534),
        (WRONG, 50, -5.0),
        (WRONG, 99, -0.002467),
        (RIGHT, 100, -10.0),
        (WRONG, 101, -10.0),
    ],
)
def test_cosine_follows_the_published_formula(rollout, completion, num_tokens, value):
    score = Cosine(limit_tokens=100, **PUBLISHED)(rollout(completion, num_tokens=num_tokens))
    assert score == pytest.approx((value + 10) / 12, abs=1e-6)


def test_cosine_of_a_truncated_rollout_is_exceeded(rollout):
    assert Cosine(limit_tokens=100, **PUBLISHED)(rollout(RIGHT, num_tokens=10, is_truncated=True)) == 0.0


@pytest.mark.parametrize(
    ("num_tokens", "score"), [(0, 0.0), (600, 0.0), (625, 0.25), (650, 0.5), (700, 1.0), (9000, 1.0)]
)
def test_overlong_rises_between_the_limits(rollout, num_tokens, score):
    assert Overlong(soft_limit_tokens=600, hard_limit_tokens=700)(rollout("", num_tokens=num_tokens)) == score


@pytest.mark.parametrize(("num_tokens", "score"), [(16_384, 0.0), (18_432, 0.5), (20_480, 1.0)])
def test_overlong_begins_where_dapo_does(rollout, num_tokens, score):
    reward = Overlong(soft_limit_tokens=None, hard_limit_tokens=20_480)
    assert reward(rollout("", num_tokens=num_tokens)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (LengthBonus, {"per_token": 0.0}),
        (LengthBonus, {"per_token": -0.001}),
        (LengthBonus, {"per_token": 1.5}),
        (LengthBonus, {"per_token": float("nan")}),
        (LengthPenalty, {"limit_tokens": 0}),
        (Overlong, {"soft_limit_tokens": 700, "hard_limit_tokens": 700}),
        (Overlong, {"soft_limit_tokens": -1, "hard_limit_tokens": 700}),
        (Overlong, {"soft_limit_tokens": None, "hard_limit_tokens": 0}),
        (Cosine, PUBLISHED | {"limit_tokens": 0}),
        (Cosine, PUBLISHED | {"limit_tokens": 100, "exceeded": float("-inf")}),
        (Cosine, PUBLISHED | {"limit_tokens": 100, "correct_at_zero": -10.0}),
        (Cosine, PUBLISHED | {"limit_tokens": 100, "wrong_at_limit": 1.0}),
    ],
)
def test_a_wrong_setting_is_refused(build, arguments):
    with pytest.raises(ValueError):
        build(**arguments)
