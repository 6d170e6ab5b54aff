"""What a study shows of forced answers: each seed's, with its items, and the differences on the same items."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

import pytest

from tests.studies.conftest import write_run
from visual_r1.files import read_json, write_json
from visual_r1.interventions import CUT, EMPTY, FORCED, WHOLE_REFLECTING, WHOLE_UNREFLECTING
from visual_r1.run_folder import RunFolder
from visual_r1.studies import page
from visual_r1.studies.causal import causal_test
from visual_r1.studies.dose import curve_of
from visual_r1.studies.study import load
from visual_r1.studies.verdict import judge

SECTION_OF = {
    **dict.fromkeys((WHOLE_REFLECTING, CUT), "cut"),
    **dict.fromkeys((WHOLE_UNREFLECTING, FORCED, EMPTY), "forced"),
}
CELLS = ("none", "little", "much")


def write_reflection(run: RunFolder, found: Mapping[str, Mapping[str, tuple[float, int]]]) -> None:
    """The forced answers of a run: by moment and condition, how often they were right, of how many items."""
    rows: dict[str, list[dict[str, object]]] = {"cut": [], "forced": []}
    for when, conditions in found.items():
        for condition, (estimate, count) in conditions.items():
            row = {"measure": "accuracy", "condition": condition, "against": None, "model": when, "source": "probe"}
            rows[SECTION_OF[condition]] += [
                {**row, "measure": "readable_rate", "estimate": 1.0, "n": count},
                {**row, "against": "another", "estimate": 0.123, "n": count},
                {**row, "estimate": estimate, "n": count},
            ]
    write_json(run.reflection, {"sections": [{"name": name, "rows": some} for name, some in rows.items()]})


@pytest.fixture
def probed(write_study, tmp_path):
    """A study of three cells, of which the first is probed; in seed 2, after training, all completions reflect."""
    study = load(
        write_study(
            cells={cell: f"scale.top_k={number}" for number, cell in enumerate(CELLS)},
            conditions=[{"says": "x", "measure": "probe/length", "of": "none", "above": 0.5}],
            dose={"measure": "probe/length", "doses": {"none": 0, "little": 1, "much": 2}, "label": "dose, %"},
            probe={"of": ["none"], "asks": "--examples 9"},
        )
    )
    runs = {(cell, seed): RunFolder(tmp_path / "runs" / cell / f"seed{seed}") for cell in CELLS for seed in study.seeds}
    for run in runs.values():
        write_run(run, before=[True, False], after=[True] * 2, curve=[0.2, 0.7])
    for seed, (whole, cut) in enumerate(((0.8, 0.5), (0.7, 0.5), (0.9, 0.5))):
        before = {WHOLE_REFLECTING: (whole, 30 + seed), CUT: (cut, 30 + seed)}
        before |= {WHOLE_UNREFLECTING: (0.5, 99), FORCED: (0.6, 99), EMPTY: (0.5, 99)}
        after = {WHOLE_REFLECTING: (0.9, 99), CUT: (0.6, 99)}
        if seed < 2:
            after |= {WHOLE_UNREFLECTING: (0.3, 10), FORCED: (0.4 + seed / 10, 10), EMPTY: (0.3, 10)}
        write_reflection(runs["none", seed], {"before": before, "after": after})
    return study, runs


def test_a_reflection_is_worth_what_cutting_it_costs(probed):
    study, runs = probed
    found = {(one.when, one.condition): one for one in causal_test(study, runs)}
    assert {one.cell for one in found.values()} == {"none"}
    worth = found["before", "so the reflection is worth"]
    assert worth.by_seed == pytest.approx((0.3, 0.2, 0.4)) and worth.num_items == (30, 31, 32)
    assert worth.is_difference and worth.interval is not None
    # t of two degrees: 0.3 ± 4.303 × 0.1 / √3
    assert (worth.interval.low, worth.interval.high) == pytest.approx((0.0516, 0.5484), abs=1e-3)
    assert found["before", "so one put in is worth"].by_seed == pytest.approx((0.1,) * 3)
    assert found["before", "so an empty one is worth"].by_seed == (0.0,) * 3
    assert [one.condition for one in found.values()].count(WHOLE_UNREFLECTING) == 2  # before and after, once each


def test_a_seed_without_such_a_thought_is_shown_as_one(probed):
    study, runs = probed
    found = {(one.when, one.condition): one for one in causal_test(study, runs)}
    put_in = found["after", "so one put in is worth"]
    assert put_in.by_seed == pytest.approx((0.1, 0.2, None)) and put_in.num_items == (10, 10, 0)
    assert put_in.interval is not None and put_in.interval.estimate == pytest.approx(0.15)


def test_the_page_and_the_figure_show_it(probed, tmp_path):
    study, runs = probed
    folder = tmp_path / "out"
    folder.mkdir()
    curve = curve_of(study, study.dose, runs)
    page.write(
        judge(study, runs), folder, command="make study", behind="seed=K", curve=curve, forced=causal_test(study, runs)
    )
    shown = (folder / "README.md").read_text()
    assert "| answered after | `none` before | `none` after |" in shown
    assert "| **so the reflection is worth** | +30.0 [+5.2, +54.8] (30, 31, 32) | " in shown
    assert "(10, 10, 0) |" in shown
    # What the curve has of each cell beside its measure: accuracy and length of the benchmark.
    assert "| `none` | 0 | 0.20, 0.20, 0.20 | 0.70, 0.70, 0.70 | " in shown
    assert "| 50.0, 50.0, 50.0 → 100.0, 100.0, 100.0 | 20, 20, 20 → 30, 30, 30 |" in shown
    forced = read_json(folder / "results.json")["forced"]
    assert {(one["when"], one["condition"]): one["by_seed"] for one in forced}["after", EMPTY] == [0.3, 0.3, None]
    words = "".join(ElementTree.parse(folder / "curve.svg").getroot().itertext())
    assert "before training" in words and "after training" in words and CUT in words


def test_a_study_that_probes_nothing_shows_nothing(write_study, tmp_path):
    study = load(write_study())
    assert causal_test(study, {}) == ()
