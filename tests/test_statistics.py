"""Intervals and pass@k against published values and hand counts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from visual_r1.statistics import Interval, Stratum, pass_at_k, weighted_wilson, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    interval = wilson(successes, n)
    assert interval.estimate == successes / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric():
    few, many = wilson(3, 20), wilson(17, 20)
    assert (few.low, few.high) == pytest.approx((1 - many.high, 1 - many.low))


@pytest.mark.parametrize("n", [1, 7, 20, 2638])
def test_wilson_at_the_ends(n):
    none, every = wilson(0, n), wilson(n, n)
    assert none.low == 0.0 < none.high < 1.0
    assert every.high == 1.0 > every.low > 0.0


def test_a_higher_level_is_wider():
    narrow, wide = wilson(15, 20, level=0.8), wilson(15, 20, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("successes", "n", "level"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0)]
)
def test_wilson_refuses(successes, n, level):
    with pytest.raises(ValueError):
        wilson(successes, n, level)


def test_one_stratum_is_wilson():
    for n in range(1, 40):
        for successes in range(n + 1):
            assert weighted_wilson([Stratum(1.0, successes, n)]) == wilson(successes, n)


def test_a_weighted_mean_gives_the_published_interval():
    # Newcombe, Statistics in Medicine 17 (1998) 873, table II, contrast (a), method 10: 56/70 - 48/80 is 0.2, between
    # 0.0524 and 0.3339. Half of 56/70 plus half of 32/80 is half of that difference plus a half.
    interval = weighted_wilson([Stratum(0.5, 56, 70), Stratum(0.5, 32, 80)])
    assert interval.estimate == pytest.approx(0.6)
    assert (interval.low, interval.high) == pytest.approx((0.5 + 0.0524 / 2, 0.5 + 0.3339 / 2), abs=5e-5)


def test_a_weighted_interval_by_hand():
    # Wilson: 8 of 10 in [0.49016, 0.94332], 5 of 10 in [0.23659, 0.76341]; 0.75 and 0.25 of them.
    interval = weighted_wilson([Stratum(0.75, 8, 10), Stratum(0.25, 5, 10)])
    assert interval.estimate == pytest.approx(0.725)
    below = ((0.75 * (0.8 - 0.49016)) ** 2 + (0.25 * (0.5 - 0.23659)) ** 2) ** 0.5
    above = ((0.75 * (0.94332 - 0.8)) ** 2 + (0.25 * (0.76341 - 0.5)) ** 2) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((0.725 - below, 0.725 + above), abs=1e-5)


@pytest.mark.parametrize("shares", [(0.6, 0.55, 0.5), (0.9, 0.2, 0.7), (0.95, 0.97, 0.9)])
def test_a_weighted_interval_covers_the_truth(shares):
    weights, sizes = (0.25, 0.25, 0.5), (60, 40, 100)  # as CV-Bench's collections, but small
    truth = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    draws = np.random.default_rng(0).binomial(sizes, shares, size=(2000, 3)).tolist()
    intervals = [weighted_wilson([Stratum(*one) for one in zip(weights, row, sizes, strict=True)]) for row in draws]
    assert 0.93 < sum(one.low <= truth <= one.high for one in intervals) / len(intervals) < 0.97


@pytest.mark.parametrize("weights", [(), (0.5, 0.4), (1.5, -0.5), (1.0, 0.0)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="add up to 1"):
        weighted_wilson([Stratum(weight, 1, 2) for weight in weights])


def test_interval_prints_percentages():
    assert str(Interval(0.57, 0.5214, 0.6178)) == "57.0 % [52.1, 61.8]"


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 2), (5, 0, 3), (5, 5, 1), (6, 1, 6), (6, 3, 4)])
def test_pass_at_k_counts_the_draws_with_a_right_sample(n, c, k):
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_1_is_accuracy():
    assert pass_at_k(200, 37, 1) == pytest.approx(37 / 200)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)
