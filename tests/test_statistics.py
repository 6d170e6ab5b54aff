"""Intervals and pass@k against published values and hand counts."""

from __future__ import annotations

from itertools import combinations

import pytest

from visual_r1.statistics import Interval, pass_at_k, wilson


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
