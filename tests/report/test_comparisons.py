"""What a comparison of runs could have found, by numbers worked out by hand."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from visual_r1.report.comparisons import _resolvable

REMAINDER = 0.2475 - 0.2184
"""Three seeds are right on the first 48, 50 and 52 % of items and the other model on the first 40 %: about 45 %, where
the variance of a verdict is 0.2475. Two verdicts of shares p < q have the covariance p (1 - q): 0.2400, 0.2304, 0.2400,
0.2080, 0.2000 and 0.1920, on average 0.2184."""
SEEDS = (0.02**2 + 0 + 0.02**2) / 2
"""Variance of the three accuracies, the items' noise in it."""


@pytest.mark.parametrize(
    ("is_other_fixed", "variance", "degrees"),
    [
        # The other's own noise on its items; 2 degrees of the seeds, divided by their share in the variance.
        (True, SEEDS / 3 + REMAINDER / 400, 2 * (SEEDS / 3 + REMAINDER / 400) / (SEEDS / 3)),
        # As if the other had three seeds, too: 3 of Welch's 4 degrees.
        (False, 2 * SEEDS / 3, 3),
    ],
)
def test_what_can_be_resolved_is_estimated_from_the_runs(is_other_fixed, variance, degrees):
    items = np.arange(400)
    ours = np.array([items < 400 * share for share in (0.48, 0.50, 0.52)], dtype=float)
    theirs = (items < 160).astype(float)[None]
    found = _resolvable(ours, theirs, num_seeds=3, is_other_fixed=is_other_fixed)
    power = stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, found / sqrt(variance))
    assert power == pytest.approx(0.8, abs=1e-3)


def test_what_paired_seeds_resolve_is_estimated_from_their_differences():
    # Each side's seeds are far apart, their differences are 5, 12 and 19 %.
    items = np.arange(400)
    ours, theirs = (
        np.array([items < 400 * share for share in shares], dtype=float)
        for shares in ((0.25, 0.52, 0.79), (0.20, 0.40, 0.60))
    )
    found = _resolvable(ours, theirs, num_seeds=3, is_other_fixed=False, is_paired=True)
    power = stats.nct.sf(stats.t.ppf(0.975, 2), 2, found / (0.07 / sqrt(3)))
    assert power == pytest.approx(0.8, abs=1e-3)
