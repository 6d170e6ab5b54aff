"""The curve of a study: monotone, with the dose at which it has fallen far enough, and its picture."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from tests.studies.conftest import write_run
from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder
from visual_r1.studies import page
from visual_r1.studies.dose import curve_of, dose_at, falling
from visual_r1.studies.study import load
from visual_r1.studies.verdict import judge

DOSES = {"none": 0, "little": 1, "some": 2, "much": 8}


def test_a_falling_curve_is_the_nearest_one():
    assert falling([0.9, 0.5, 0.1]) == pytest.approx((0.9, 0.5, 0.1))
    assert falling([0.5, 0.9, 0.1]) == pytest.approx((0.7, 0.7, 0.1))  # what rises is averaged
    assert falling([0.1, 0.2, 0.6]) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    ("fitted", "expected"),
    [
        ((1.0, 0.8, 0.4, 0.0), 1.75),  # three quarters of the way from 0.8 to 0.4
        ((1.0, 1.0, 0.7, 0.1), 2 + 6 * 0.2 / 0.6),
        ((1.0, 0.5, 0.5, 0.5), 1.0),
        ((0.5, 0.4, 0.3, 0.2), 0.0),
        ((1.0, 0.9, 0.8, 0.7), math.inf),
    ],
)
def test_the_dose_at_which_it_has_fallen(fitted, expected):
    assert dose_at(0.5, tuple(DOSES.values()), fitted) == pytest.approx(expected)


def make(write_study, tmp_path, after, *, beside=()):
    cells = {**DOSES, **dict.fromkeys(beside, 0)}
    study = load(
        write_study(
            cells={cell: f"scale.top_k={number}" for number, cell in enumerate(cells)},
            conditions=[{"says": "x", "measure": "probe/length", "of": "none", "above": 0.5}],
            dose={
                "measure": "probe/length",
                "doses": DOSES,
                "beside": list(beside),
                "falls_to": 0.5,
                "label": "dose, %",
            }
            if beside
            else {"measure": "probe/length", "doses": DOSES, "falls_to": 0.5, "label": "dose, %"},
        )
    )
    runs = {}
    for cell in cells:
        for seed in study.seeds:
            runs[cell, seed] = RunFolder(tmp_path / "runs" / cell / f"seed{seed}")
            write_run(runs[cell, seed], before=[True] * 2, after=[True] * 2, curve=[0.2, after[cell][seed]])
    return study, runs


def test_each_seed_has_a_curve_and_the_seeds_an_interval(write_study, tmp_path):
    after = {
        "none": (1, 1, 1),
        "little": (0.8, 1, 0.9),
        "some": (0.4, 0.6, 0.5),
        "much": (0, 0, 0),
        "empty": (0, 0.1, 0),
    }
    study, runs = make(write_study, tmp_path, after, beside=["empty"])
    curve = curve_of(study, study.dose, runs)
    assert curve.reaches == pytest.approx((1.75, 3.0, 2.0))
    assert curve.interval is not None and curve.interval.estimate == pytest.approx(2.25)
    assert curve.interval.low < 1.75 and curve.interval.high > 3  # t of three seeds is wider than they lie apart
    empty = curve.points[-1]
    assert (empty.dose, empty.fitted, empty.after, empty.before) == (None, (), (0, 0.1, 0), (0.2, 0.2, 0.2))
    folder = tmp_path / "out"
    folder.mkdir()
    page.write(judge(study, runs), folder, command="make study", behind="seed=K", curve=curve)
    shown = (folder / "README.md").read_text()
    assert "has fallen to 0.5: 2.25 [" in shown and "by seed 1.75, 3.00, 2.00" in shown
    assert "| `empty` | beside the curve | 0.20, 0.20, 0.20 | 0.00, 0.10, 0.00 |" in shown
    assert "| 0.00, 0.00, 0.00 | 0.00, no interval |" in shown  # of `much`, where all seeds give the same
    assert read_json(folder / "results.json")["curve"]["at_dose"] == pytest.approx(2.25)
    words = "".join(ElementTree.parse(folder / "curve.svg").getroot().itertext())
    assert "empty" in words and "dose, %" in words


def test_a_dose_that_one_seed_never_reaches_has_no_interval(write_study, tmp_path):
    after = {"none": (1, 1, 1), "little": (0.8, 1, 0.9), "some": (0.4, 0.6, 0.9), "much": (0, 0, 0.9)}
    study, runs = make(write_study, tmp_path, after)
    curve = curve_of(study, study.dose, runs)
    assert curve.reaches[-1] == math.inf and curve.interval is None
    shown = page.readme(judge(study, runs), command="x", behind="seed=K", curve=curve)
    assert "not found within these doses in every seed; by seed 1.75, 3.00, never" in shown
    assert curve.record()["at_dose_by_seed"][-1] is None
