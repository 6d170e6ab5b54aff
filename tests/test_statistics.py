"""Intervals and pass@k against published values and hand counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from math import nan, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import Design, covered, intervals, table, verdicts
from visual_r1.files import read_json
from visual_r1.statistics import (
    Interval,
    ItemStratum,
    Stratum,
    bootstrap_mean,
    curve_band,
    difference_over_seeds,
    holm,
    maj_at_k,
    mcnemar,
    mean_over_seeds,
    minimum_difference,
    paired_difference,
    pass_at_k,
    weighted_wilson,
    wilson,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "statistics.md").read_text()


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


@pytest.mark.parametrize("answers", ["AABBC", "AAB--", "ABCD-", "-----", "BBBAA", "AAAAA", "AABBCC-"])
def test_maj_at_k_counts_the_votes_of_every_subset(answers):
    samples = [None if one == "-" else one for one in answers]
    for k in range(1, len(samples) + 1):
        won = []
        for voters in combinations(samples, k):
            votes = {one: voters.count(one) for one in voters if one is not None}
            first = [one for one, count in votes.items() if count == max(votes.values())]
            won.append(("A" in first) / max(1, len(first)))
        assert maj_at_k(samples, "A", k) == pytest.approx(sum(won) / len(won), abs=1e-12)


def test_maj_at_1_is_accuracy():
    assert maj_at_k(["A"] * 37 + ["B"] * 100 + [None] * 63, "A", 1) == pytest.approx(37 / 200)


def test_maj_at_k_refuses():
    with pytest.raises(ValueError, match="maj@3 of 2"):
        maj_at_k(["A", "B"], "A", 3)
    with pytest.raises(ValueError, match="right answer is None"):
        maj_at_k(["A", None], None, 1)


def pairs(wins: int, losses: int, both: int = 3, neither: int = 5) -> tuple[list[int], list[int]]:
    one = [1] * wins + [0] * losses + [1] * both + [0] * neither
    return one, [0] * wins + [1] * losses + [1] * both + [0] * neither


def test_mcnemar_gives_the_published_p():
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13 (2013) 91, table 1: airway hyper-responsiveness
    # before and after a transplantation; exact conditional test.
    assert mcnemar(*pairs(1, 7, both=1, neither=12)) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 1), (3, 3), (10, 2), (2, 10), (60, 31)])
def test_mcnemar_is_the_sign_test(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(*pairs(wins, losses)) == pytest.approx(expected)


def test_holm_is_the_closed_test_of_bonferroni():
    p = [0.01, 0.04, 0.03, 0.005, 0.2]
    sets = [chosen for chosen in product([False, True], repeat=len(p)) if any(chosen)]
    joint = {chosen: min(1, sum(chosen) * min(p[i] for i in range(len(p)) if chosen[i])) for chosen in sets}
    assert holm(p) == pytest.approx([max(joint[chosen] for chosen in sets if chosen[i]) for i in range(len(p))])
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"p-values are in \[0, 1\]"):
        holm([0.1, nan])


def test_one_seed_of_verdicts_is_wilson_and_says_that_no_seed_is_in_it():
    for right in (0, 1, 57, 400):
        values = np.arange(400) < right
        interval, expected = mean_over_seeds([values]), wilson(right, 400)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
        assert not interval.accounts_for_seeds
    assert mean_over_seeds([values, values]).accounts_for_seeds


def test_the_variance_is_the_corrected_bootstrap_of_seeds_and_items():
    generator = np.random.default_rng(0)
    table = generator.normal(size=(4, 1)) + 2 * generator.normal(size=30) + generator.normal(size=(4, 30))
    seeds = generator.integers(4, size=(40_000, 4, 1))
    items = generator.integers(30, size=(40_000, 1, 30))
    drawn = table[seeds, items].mean(axis=(1, 2)).var()
    a, b = table.mean(axis=1) - table.mean(), table.mean(axis=0) - table.mean()
    e = table - table.mean() - a[:, None] - b
    sums = np.array([(a**2).sum() / 4**2, (b**2).sum() / 30**2, (e**2).sum() / 120**2])
    assert drawn == pytest.approx(sums.sum(), rel=0.03)
    part, rest, left = sums * (4 / 3, 30 / 29, 120 / 87)
    half = stats.t.ppf(0.975, 3 * (part + rest - left) / part) * sqrt(part + rest - left)
    interval = mean_over_seeds(table)
    assert (interval.low, interval.high) == pytest.approx((table.mean() - half, table.mean() + half))


STRATA = (ItemStratum(0.25, range(60)), ItemStratum(0.25, range(60, 100)), ItemStratum(0.5, range(100, 200)))


def stratified(accuracies, *, num_seeds, generator, seed_sd=0.02, num_draws=1):
    """Verdicts ``[num_draws, num_seeds, 200]`` on the items of `STRATA`, whose accuracy moves with the seed."""
    by_item = np.repeat(accuracies, [len(one.items) for one in STRATA])
    # Half of an item's spread is its own, the same for every seed.
    hard = np.clip(by_item + generator.choice((-0.15, 0.15), size=(num_draws, 1, 200)), 0, 1)
    moved = hard + seed_sd * generator.normal(size=(num_draws, num_seeds, 1))
    return (generator.random((num_draws, num_seeds, 200)) < moved).astype(float)


def test_one_stratum_of_all_items_is_the_plain_mean():
    drawn = verdicts(Design(num_items=90, num_seeds=4, accuracy=0.7, seed_sd=0.02), np.random.default_rng(0))
    whole = (ItemStratum(1.0, range(90)),)
    assert mean_over_seeds(drawn, strata=whole) == mean_over_seeds(drawn)
    assert difference_over_seeds(drawn[:2], drawn[2:], strata=whole) == difference_over_seeds(drawn[:2], drawn[2:])


def test_a_weighted_mean_over_seeds_by_hand():
    table = np.random.default_rng(0).normal(size=(1, 200))
    parts = [table[0, one.items] for one in STRATA]
    mean = sum(one.weight * part.mean() for one, part in zip(STRATA, parts, strict=True))
    error = sqrt(sum(one.weight**2 * part.var(ddof=1) / part.size for one, part in zip(STRATA, parts, strict=True)))
    interval = mean_over_seeds(table, strata=STRATA)
    assert (interval.estimate, interval.low) == pytest.approx((mean, mean - 1.959964 * error))
    # Items that do not differ within a part: the t-interval of the seeds' weighted means.
    by_part = np.array([[0.3, 1.4, 0.9], [0.5, 1.0, 1.1], [0.4, 1.7, 0.2]])
    weighted = by_part @ [one.weight for one in STRATA]
    interval = mean_over_seeds(np.repeat(by_part, [len(one.items) for one in STRATA], axis=1), strata=STRATA)
    expected = stats.t.interval(0.95, 2, loc=weighted.mean(), scale=stats.sem(weighted))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_a_weighted_gain_is_after_minus_before():
    generator = np.random.default_rng(0)
    after = stratified((0.9, 0.5, 0.7), num_seeds=3, generator=generator)[0]
    before = stratified((0.4, 0.5, 0.6), num_seeds=1, generator=generator)[0]
    gain = difference_over_seeds(after, before, strata=STRATA).estimate
    assert gain == pytest.approx(
        mean_over_seeds(after, strata=STRATA).estimate - mean_over_seeds(before, strata=STRATA).estimate
    )
    assert gain != pytest.approx(difference_over_seeds(after, before).estimate, abs=1e-3)


def test_a_weighted_mean_of_shares_stays_in_range_and_has_a_width():
    for one in (0, 1):
        interval = mean_over_seeds(np.full((3, 200), one), strata=STRATA)
        assert 0 <= interval.low < interval.high <= 1 and interval.estimate == one


def test_weighted_means_over_seeds_cover_the_truth():
    accuracies = (0.8, 0.4, 0.6)
    truth = sum(one.weight * accuracy for one, accuracy in zip(STRATA, accuracies, strict=True))
    drawn = stratified(accuracies, num_seeds=3, generator=np.random.default_rng(0), num_draws=2000)
    held = [one.low <= truth <= one.high for one in (mean_over_seeds(table, strata=STRATA) for table in drawn)]
    assert 0.93 <= np.mean(held) <= 0.97


def test_items_without_a_difference_leave_the_t_interval_of_seeds():
    means = [0.3, 1.4, 0.9]
    interval = mean_over_seeds([[mean] * 50 for mean in means])
    expected = stats.t.interval(0.95, 2, loc=np.mean(means), scale=stats.sem(means))
    assert (interval.low, interval.high) == pytest.approx(expected)
    first, second = curve_band([[mean, 2 * mean] for mean in means])
    assert (first.low, first.high) == pytest.approx(expected)
    assert (second.low, second.high) == pytest.approx([2 * end for end in expected])


def test_two_sides_of_seeds_are_compared_by_welch():
    ones, others = [0.31, 0.74, 0.92], [1.4, 1.1]
    interval = difference_over_seeds([[one] * 9 for one in ones], [[one] * 9 for one in others])
    expected = stats.ttest_ind(ones, others, equal_var=False).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    paired = difference_over_seeds([[one] * 9 for one in ones[:2]], [[one] * 9 for one in others], paired=True)
    expected = stats.ttest_rel(ones[:2], others).confidence_interval()
    assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high))


def test_bootstraps_agree_with_scipy():
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=200), generator.normal(size=200)
    expected = stats.bootstrap((one - other,), np.mean, method="percentile", rng=generator).confidence_interval
    interval = paired_difference(one, other)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert interval == paired_difference(one, other) != paired_difference(one, other, seed=1)
    assert bootstrap_mean(one - other) == interval


def test_intervals_of_shares_have_a_width_at_the_ends_and_stay_in_range():
    for all_of_them in (0, 1):
        values = np.full((3, 400), all_of_them)
        for interval in (mean_over_seeds(values), bootstrap_mean(values[0])):
            assert 0 <= interval.low < interval.high <= 1
            assert interval.estimate in (interval.low, interval.high)
        for none in (paired_difference(values[0], values[0]), difference_over_seeds(values, values)):
            assert none.low < none.estimate == 0 < none.high


def test_a_higher_level_and_fewer_seeds_are_wider():
    drawn = verdicts(Design(num_items=400, num_seeds=5, accuracy=0.7, seed_sd=0.02), np.random.default_rng(0))
    assert mean_over_seeds(drawn, level=0.99).low < mean_over_seeds(drawn).low
    lengths = 100 * drawn + np.arange(5)[:, None]
    assert mean_over_seeds(lengths, level=0.99).high > mean_over_seeds(lengths).high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_over_seeds([]), r"got the shape \(0,\)"),
        (lambda: mean_over_seeds([1, 0, 1]), r"got the shape \(3,\)"),
        (lambda: mean_over_seeds([[1], [0]]), r"got the shape \(2, 1\)"),
        (lambda: mean_over_seeds([[1, 0], [1]]), "rows of different lengths"),
        (lambda: mean_over_seeds([[1, nan], [1, 0]]), "1 of 4 values are not finite"),
        (lambda: mean_over_seeds([[1, 0]], level=95), "level is 95"),
        (lambda: difference_over_seeds([[1, 0, 1]], [[1, 0]]), "3 items on one side and 2"),
        (lambda: difference_over_seeds([[1, 0]] * 3, [[1, 0]], paired=True), "paired seeds, but 3"),
        (lambda: mean_over_seeds([[1, 0, 1]], strata=[ItemStratum(1.0, [0])]), "2 items each"),
        (lambda: mean_over_seeds([[1, 0, 1]], strata=[ItemStratum(0.5, [0, 1])]), "add up to 1"),
        (lambda: paired_difference([1, 0, 1], [1, 0]), "3 items on one side and 2"),
        (lambda: paired_difference([1, None], [1, 0]), "not finite|not a number"),
        (lambda: bootstrap_mean([1.0]), "2 items or more"),
        (lambda: bootstrap_mean([1.0, 2.0], resamples=0), "resamples=0"),
        (lambda: mcnemar([1, 2], [0, 1]), "0 or 1"),
        (lambda: mcnemar([], []), "0 or 1"),
        (lambda: curve_band([[1, 2]]), "one seed has no band"),
        (lambda: minimum_difference(num_items=1, num_seeds=0, accuracy=0.5), "1 items and 0 seeds"),
        (lambda: minimum_difference(num_items=9, num_seeds=1, accuracy=1, correlation=1), "accuracy and correlation"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "design",
    [
        Design(num_items=400, num_seeds=1, accuracy=0.95),
        Design(num_items=400, num_seeds=3, accuracy=0.05, seed_sd=0.01),
        Design(num_items=400, num_seeds=3, accuracy=0.7, seed_sd=0.02),
        Design(num_items=400, num_seeds=3, accuracy=0.7, seed_sd=0.04),
        Design(num_items=400, num_seeds=5, accuracy=0.98, seed_sd=0.005),
        Design(num_items=1000, num_seeds=3, accuracy=0.5, seed_sd=0.03, correlation=0.5),
    ],
    ids=str,
)
def test_intervals_over_seeds_cover_the_truth(design):
    assert 0.93 <= covered("mean_over_seeds", design) <= 0.97


def test_resampling_few_seeds_covers_too_little():
    # What the corrections are for: the reason not to go back.
    design = Design(num_items=2638, num_seeds=3, accuracy=0.7, seed_sd=0.04)
    assert covered("resampled seeds and items", design, draws=200, resamples=1000) < 0.88


@pytest.mark.parametrize("accuracy", [0.7, 0.95])
def test_paired_bootstraps_cover_the_truth(accuracy):
    design = Design(num_items=400, num_seeds=1, accuracy=accuracy, difference=0.02)
    assert 0.93 <= covered("paired_difference", design, draws=1000, resamples=500) <= 0.97
    assert 0.93 <= covered("bootstrap_mean", design, draws=1000, resamples=500) <= 0.97


def test_differences_over_seeds_cover_the_truth():
    design = Design(num_items=400, num_seeds=3, accuracy=0.7, seed_sd=0.02, difference=0.05)
    assert 0.93 <= covered("difference_over_seeds", design) <= 0.97
    of_builds = replace(design, seed_sd=0.04, seed_correlation=0.8)
    assert 0.93 <= covered("difference_over_seeds, paired", of_builds) <= 0.97


def test_the_minimum_difference_by_hand():
    # One seed, paired: (1.95996 + 0.84162) sqrt(2 (1 - 0.5) 0.21 / 2638).
    found = minimum_difference(num_items=2638, num_seeds=1, accuracy=0.7, correlation=0.5)
    assert found == pytest.approx(2.80158 * sqrt(0.21 / 2638), rel=1e-4)
    other_items = minimum_difference(num_items=2638, num_seeds=1, accuracy=0.7, correlation=0.5, is_paired=False)
    assert other_items == pytest.approx(sqrt(2) * found)


def test_the_minimum_difference_is_that_of_two_samples_of_seeds():
    # Endless items leave Welch's test of 3 against 3, with 3 degrees of freedom on average; the power by scipy.stats.
    found = minimum_difference(num_items=10**9, num_seeds=3, accuracy=0.5, seed_sd=0.01)
    power = stats.nct.sf(stats.t.ppf(0.975, 3), 3, found / 0.01 * sqrt(3 / 2))
    assert power == pytest.approx(0.8, abs=1e-3)


def test_the_minimum_difference_to_one_fixed_model_is_that_of_one_sample_of_seeds():
    # Endless items leave a t-test of 3 seeds against a number; its power by scipy.stats.
    found = minimum_difference(num_items=10**9, num_seeds=3, accuracy=0.5, seed_sd=0.01, is_other_fixed=True)
    assert stats.nct.sf(stats.t.ppf(0.975, 2), 2, found / 0.01 * sqrt(3)) == pytest.approx(0.8, abs=1e-3)
    alone = [
        minimum_difference(num_items=400, num_seeds=1, accuracy=0.5, is_other_fixed=fixed) for fixed in (True, False)
    ]
    assert alone[0] == pytest.approx(alone[1])  # one seed, whose spread is taken as none, is one model too


def test_the_minimum_difference_of_paired_seeds_is_that_of_one_sample_of_differences():
    found = minimum_difference(num_items=10**9, num_seeds=4, accuracy=0.5, seed_sd=0.01, are_seeds_paired=True)
    of_a_difference = sqrt(2) * 0.01
    assert stats.nct.sf(stats.t.ppf(0.975, 3), 3, found / of_a_difference * sqrt(4)) == pytest.approx(0.8, abs=1e-3)


def test_the_minimum_difference_to_one_fixed_model_is_found_as_often_as_it_says():
    # Items that all are as hard: no correlation beyond that of a coin.
    found = minimum_difference(num_items=400, num_seeds=5, accuracy=0.6, seed_sd=0.02, is_other_fixed=True)
    generator = np.random.default_rng(0)
    moved = 0.6 + found / 2 + 0.02 * generator.normal(size=(1000, 5, 1))
    ones, others = generator.random((1000, 5, 400)) < moved, generator.random((1000, 1, 400)) < 0.6 - found / 2
    intervals = [difference_over_seeds(one, other) for one, other in zip(ones, others, strict=True)]
    assert np.mean([one.low > 0 for one in intervals]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(1, 0.0), (3, 0.01), (5, 0.02)])
def test_the_minimum_difference_is_found_as_often_as_it_says(num_seeds, seed_sd):
    design = Design(num_items=400, num_seeds=num_seeds, accuracy=0.6, seed_sd=seed_sd)
    many = verdicts(Design(num_items=200_000, num_seeds=2, accuracy=0.6), np.random.default_rng(0))
    difference = minimum_difference(
        num_items=400,
        num_seeds=num_seeds,
        accuracy=0.6,
        seed_sd=seed_sd,
        correlation=float(np.corrcoef(many)[0, 1]),
    )
    design = replace(design, accuracy=0.6 - difference / 2, difference=difference)
    drawn = intervals("difference_over_seeds", design, draws=1000, resamples=0)
    assert np.mean([one.low > 0 for one in drawn]) == pytest.approx(0.8, abs=0.05)


def test_the_page_shows_the_measured_coverage():
    assert table(read_json(ROOT / "benchmarks" / "results" / "coverage.json")["results"]) in PAGE


def test_the_page_shows_what_designs_resolve():
    rows = [line.strip("| ").split(" | ") for line in PAGE.split("<!-- resolved -->")[1].splitlines() if "|" in line]
    assert len(rows) == 8
    for spread, items, *found in rows[2:]:
        sd = {"none": 0.0, "1 point": 0.01, "2 points": 0.02}[spread]
        for num_seeds, shown in zip((1, 2, 3, 5, 10), found, strict=True):
            design = minimum_difference(
                num_items=int(items.replace(",", "")),
                num_seeds=num_seeds,
                accuracy=0.7,
                seed_sd=sd,
                correlation=0.5,
            )
            assert f"{100 * design:.1f}" == shown


@pytest.mark.parametrize(
    ("num_seeds", "seed_sd", "is_paired", "points"), [(1, 0, False, 3.8), (1, 0, True, 2.7), (10, 0.01, True, 1.6)]
)
def test_what_the_paper_s_difference_takes(num_seeds, seed_sd, is_paired, points):
    found = minimum_difference(
        num_items=2638, num_seeds=num_seeds, accuracy=0.6, seed_sd=seed_sd, correlation=0.5, is_paired=is_paired
    )
    assert 100 * found == pytest.approx(points, abs=0.05)
