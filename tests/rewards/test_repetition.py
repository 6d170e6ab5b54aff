"""Repetition."""

from __future__ import annotations

import pytest

from visual_r1.rewards.repetition import Repetition


@pytest.mark.parametrize(
    ("completion", "ngram", "score"),
    [
        pytest.param("the cup is left of the plate", 2, 0.0, id="no-pair-twice"),
        pytest.param("wait wait wait wait wait", 2, 3 / 4, id="four-pairs-of-which-one-differs"),
        pytest.param("let me check let me check", 3, 1 / 4, id="one-of-four"),
        pytest.param("Let me check, let ME check", 2, 2 / 6, id="case-folded-and-signs-count"),
        pytest.param("!!!!", 1, 3 / 4, id="signs-alone"),
        pytest.param("a a a", 4, 0.0, id="too-short"),
        pytest.param("", 1, 0.0, id="nothing"),
    ],
)
def test_repetition(rollout, completion, ngram, score):
    assert Repetition(ngram=ngram)(rollout(completion)) == pytest.approx(score)


def test_a_phrase_without_end_comes_near_1(rollout):
    assert 0.99 < Repetition(ngram=4)(rollout("wait , let me check again . " * 500)) < 1.0


@pytest.mark.parametrize("ngram", [0, -1])
def test_a_wrong_setting_is_refused(ngram):
    with pytest.raises(ValueError, match="ngram"):
        Repetition(ngram=ngram)
