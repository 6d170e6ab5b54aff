"""Intervals and pass@k against published values and hand counts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from visual_r1.statistics import Interval, bootstrap_mean, pass_at_k, wilson


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


def test_bootstrap_of_a_large_sample_is_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    interval = bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_bootstrap_of_two_values_is_the_exact_law():
    # Means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the central 95 % reach both ends, the central 40 % neither.
    assert bootstrap_mean([0.0, 1.0], seed=0) == Interval(0.5, 0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], seed=0, level=0.4) == Interval(0.5, 0.5, 0.5)


def test_bootstrap_is_repeatable_and_depends_on_the_seed():
    values = list(np.random.default_rng(2).random(50))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_mean([0.25] * 9, seed=0) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([[1.0]], 0.95), ([float("nan")], 0.95), ([1.0], 1.5)])
def test_bootstrap_refuses(values, level):
    with pytest.raises(ValueError):
        bootstrap_mean(values, seed=0, level=level)


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
