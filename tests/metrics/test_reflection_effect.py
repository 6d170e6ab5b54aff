"""The effect within a prompt on policies whose truth is known, its interval's coverage, and the answer's flips."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from visual_r1.metrics.reflection import Reflection
from visual_r1.metrics.reflection_effect import (
    FLIPS,
    Outcome,
    effect_within_prompt,
    flip,
    gap,
    ratio,
    share,
    stated_before,
    thought_span,
)

WAIT = Reflection(phrases=("wait",))


def outcomes(*groups):
    """Groups of one prompt each, as texts: "R" reflects, "n" does not; "+" is right, "-" is wrong."""
    return [
        Outcome(prompt=str(number), visit=0, reflects=kind == "R", is_right=verdict == "+")
        for number, group in enumerate(groups)
        for kind, verdict in group.split()
    ]


def known(estimate):
    """An estimate's interval, which must be there."""
    assert estimate.interval is not None
    return estimate.interval


def simulate(rng, *, num_prompts, num_generations, effect, drawn_to_easy):
    """A policy on prompts of different difficulty: reflecting adds `effect`, and may be likelier where it is easy."""
    rows = []
    for prompt in range(num_prompts):
        ease = rng.uniform(0.1, 0.6)
        rate = 0.1 + 1.2 * (ease - 0.1) if drawn_to_easy else 0.4
        reflects = rng.random(num_generations) < rate
        is_right = rng.random(num_generations) < ease + effect * reflects
        rows += [
            Outcome(prompt=str(prompt), visit=0, reflects=bool(one), is_right=bool(other))
            for one, other in zip(reflects, is_right, strict=True)
        ]
    return rows


def test_a_policy_in_which_reflection_helps_by_d_gives_d():
    rows = simulate(np.random.default_rng(0), num_prompts=4000, num_generations=8, effect=0.3, drawn_to_easy=False)
    estimate = effect_within_prompt(rows)
    assert estimate.value == pytest.approx(0.3, abs=0.02)
    assert known(estimate).low < 0.3 < known(estimate).high
    assert known(estimate).high - known(estimate).low < 0.03


def test_a_policy_that_reflects_where_it_is_easy_gives_nothing():
    rows = simulate(np.random.default_rng(1), num_prompts=4000, num_generations=8, effect=0.0, drawn_to_easy=True)
    estimate = effect_within_prompt(rows)
    assert estimate.value == pytest.approx(0, abs=0.02)
    assert known(estimate).low < 0 < known(estimate).high
    assert known(gap(rows)).low > 0.05  # which a naive count takes for an effect


@pytest.mark.parametrize(("num_prompts", "drawn_to_easy"), [(12, False), (40, True)])
def test_the_interval_covers_as_often_as_it_says(num_prompts, drawn_to_easy):
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        rows = simulate(rng, num_prompts=num_prompts, num_generations=4, effect=0.2, drawn_to_easy=drawn_to_easy)
        interval = effect_within_prompt(rows).interval
        if interval is not None:
            covered.append(interval.low <= 0.2 <= interval.high)
    # Four standard errors of a share of 0.95 in 400 are 0.044; a jackknife is wide rather than narrow.
    assert len(covered) > 390 and 0.91 < fmean(covered) <= 0.99


def test_by_hand():
    # 1/2 - 0 with weight 2 x 1 / 3, 1 - 1/3 with weight 1 x 3 / 4; the others have no mixed kinds.
    estimate = effect_within_prompt(outcomes("R+ R- n-", "R+ n+ n- n-", "R+ R+", "n-"))
    assert estimate.value == pytest.approx((2 / 3 * 1 / 2 + 3 / 4 * 2 / 3) / (2 / 3 + 3 / 4))
    assert estimate.num_prompts == 2
    # Two clusters: the jackknife's half width is t_1 |d1 - d2| / 2, and t_1 is 12.7062. No difference is above 1.
    assert estimate.value is not None
    assert known(estimate).low == pytest.approx(estimate.value - 12.7062 * (2 / 3 - 1 / 2) / 2, rel=1e-4)
    assert known(estimate).high == 1


def test_visits_of_a_prompt_are_compared_apart_and_count_as_one():
    rows = outcomes("R+ n-", "R- n+", "R+ n-")
    later = [Outcome(prompt=one.prompt, visit=1, reflects=one.reflects, is_right=one.is_right) for one in rows]
    estimate = effect_within_prompt([*rows, *later])
    assert estimate.num_prompts == 3
    assert estimate.interval == effect_within_prompt(rows).interval
    # A step on which all reflect beside one on which none does is no comparison.
    apart = [Outcome(prompt="0", visit=int(one), reflects=one, is_right=one) for one in (False, True)]
    assert effect_within_prompt(apart).value is None


@pytest.mark.parametrize(
    ("groups", "value", "num_prompts"),
    [
        pytest.param((), None, 0, id="nothing"),
        pytest.param(("R+ R-", "n+"), None, 0, id="no-prompt-with-both"),
        pytest.param(("R+ n-", "R+"), 1.0, 1, id="one-prompt"),
        pytest.param(("R+ n-", "R+ n-"), 1.0, 2, id="prompts-that-agree"),
    ],
)
def test_too_little_has_no_interval(groups, value, num_prompts):
    estimate = effect_within_prompt(outcomes(*groups))
    assert (estimate.value, estimate.interval, estimate.num_prompts) == (value, None, num_prompts)


def test_shares_respect_prompts():
    alone = share((number, number < 30) for number in range(100))
    assert (round(known(alone).low, 4), round(known(alone).high, 4)) == (0.2189, 0.3958)  # Wilson's
    together = share((number // 10, number < 30) for number in range(100))  # ten prompts whose completions are alike
    assert known(together).high - known(together).low > 3 * (known(alone).high - known(alone).low)
    assert known(together).low == 0
    assert known(share([(number // 10, False) for number in range(100)])).high == pytest.approx(0.2775, abs=1e-4)
    assert share([]).value is None


def test_a_ratio_of_sums():
    assert ratio([("a", 1, 10), ("b", 2, 90)]).value == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("stated", "final", "expected"),
    [
        ("A", "B", "wrong to right"),
        ("B", "A", "right to wrong"),
        ("A", "C", "wrong to another wrong"),
        ("B", "B", "stays right"),
        ("A", "A", "stays wrong"),
        ("B", None, "right, then no readable answer"),
        ("A", None, "wrong, then no readable answer"),
        (None, "B", "no answer stated before"),
        (None, None, "no answer stated before"),
    ],
)
def test_flips(stated, final, expected):
    assert flip(stated, final, solution="B") == expected
    assert expected in FLIPS


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("It is left. Wait, it is right.</think><answer>B</answer>", "A"),
        ("It is left. It is right. Wait. It is left. Wait.</think>", "B"),
        ("I see. Wait, it is right.</think>", None),
        ("It is left.</think><answer>A</answer> Wait", None),
        ("It is left.<answer>wait</answer>", None),
        ("It is left. No more.</think>", None),
        ("<think>It is left. Wait.</think>", "A"),
        ("", None),
    ],
)
def test_only_the_thought_before_its_first_reflection_is_read(completion, letter):
    question = "Where is it?\n(A) left\n(B) right"
    assert stated_before(completion, WAIT, question=question, choices=("left", "right")) == letter


@pytest.mark.parametrize(
    ("completion", "thought"),
    [
        ("a b</think>\n<answer>c</answer>", "a b"),
        ("<think> a</think> b", " a"),
        ("hm <think>a", "a"),
        ("a<answer>b</answer></think>", "a"),
        ("a", "a"),
        ("</think><think>a", ""),
        ("", ""),
    ],
)
def test_a_thought_ends_where_it_is_closed_or_answered(completion, thought):
    start, end = thought_span(completion)
    assert completion[start:end] == thought
