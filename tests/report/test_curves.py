"""Curves over seeds: means, bands, gaps, and a bound on their size."""

from __future__ import annotations

import pytest

from tests.finished_runs import write_run
from visual_r1.files import write_jsonl
from visual_r1.report.across import drawn, findings
from visual_r1.report.curves import MAX_PHRASES, MAX_POINTS, by_keyword_list, charts_for, curve_over_seeds, entries_of
from visual_r1.report.phrases import phrase_table
from visual_r1.report.rollouts import Sampled
from visual_r1.report.runs import read_runs
from visual_r1.statistics import curve_band, wilson


def line(*values, first=0):
    return [(first + index, value) for index, value in enumerate(values)]


def test_the_band_is_the_t_interval_over_seeds_at_each_step():
    seeds = [line(0.1, 0.5), line(0.3, 0.6), line(0.2, 0.1)]
    curve = curve_over_seeds(seeds)
    expected = curve_band([[0.1, 0.5], [0.3, 0.6], [0.2, 0.1]])
    assert curve is not None and curve["band"] == "seeds" and curve["steps"] == [0, 1]
    assert curve["mean"] == pytest.approx([0.2, 0.4])
    assert curve["low"] == pytest.approx([one.low for one in expected], rel=1e-3)
    assert curve["high"] == pytest.approx([one.high for one in expected], rel=1e-3)
    assert curve["seeds"] == [[0.1, 0.5], [0.3, 0.6], [0.2, 0.1]]


def test_a_gap_in_a_seed_is_a_mean_of_the_others_and_no_zero():
    curve = curve_over_seeds([line(0.2, 0.4, 0.6), [(0, 0.4), (2, 0.8)]])
    assert curve is not None and curve["mean"] == pytest.approx([0.3, 0.4, 0.7])
    assert curve["low"][1] is None and curve["low"][0] is not None and curve["seeds"][1] == [0.4, None, 0.8]


def test_a_single_seed_has_a_band_over_items_where_it_is_a_share_and_else_none():
    curve = curve_over_seeds([line(0.25)], num_items=16)
    assert curve is not None and curve["band"] == "items"
    assert curve["low"] == pytest.approx([wilson(4, 16).low], rel=1e-3)
    alone = curve_over_seeds([line(12.0)])
    assert alone is not None and alone["band"] == "" and "low" not in alone
    assert curve_over_seeds([[], []]) is None


def test_the_band_of_a_share_stays_one():
    curve = curve_over_seeds([line(0.1, 1.0), line(0.3, 0.8)], is_share=True)
    assert curve is not None and curve["low"][0] == 0.0 and curve["high"][1] == 1.0


def test_a_long_curve_is_averaged_over_neighbours():
    curve = curve_over_seeds([line(*range(10 * MAX_POINTS + 1))])
    assert curve is not None and len(curve["steps"]) <= MAX_POINTS and curve["width"] == 11
    assert curve["steps"][0] == 10 and curve["mean"][0] == 5.0


def test_other_keyword_lists_count_the_rollouts_on_record():
    rows = [
        {"source": "probe", "completion": "Wait, wait.", "correct": True, "num_tokens": 6},
        {"source": "probe", "completion": "I see.", "correct": False, "num_tokens": 4},
    ]
    found = by_keyword_list([Sampled(step=5, rows=rows)], {"one": ("wait",), "two": ("see",)})
    assert found["probe/list/one/any_rate"] == [(5, 0.5)]
    assert found["probe/list/one/per_1k_tokens"] == [(5, 200.0)]
    assert found["probe/list/one/any_rate_correct"] == [(5, 1.0)]
    assert found["probe/list/two/any_rate_incorrect"] == [(5, 1.0)]


def test_charts_name_what_the_aha_moment_and_its_controls_need():
    charts = {chart.key for chart in charts_for((), ("default",))}
    assert {"reflection", "per_1k", "by_outcome"} <= charts


def test_phrases_that_were_said_most_have_charts_and_all_that_were_said_a_table(tmp_path):
    run = write_run(tmp_path / "a" / "seed0", is_finished=False)
    rates = {f"probe/reflection/keyword/word_{number}": 0.01 * number for number in range(MAX_PHRASES + 3)}
    write_jsonl(run.metrics, [{"step": 0, **rates}, {"step": 5, **dict.fromkeys(rates, 0.0)}])
    runs = read_runs([tmp_path]).runs
    charts = [one for one in charts_for(runs, ()) if one.place == "phrases"]
    assert [one.title for one in charts] == [f"“word {number}”" for number in range(MAX_PHRASES + 2, 2, -1)]
    assert charts[0].choices[0].lines[0].probe == f"probe/reflection/keyword/word_{MAX_PHRASES + 2}"
    entries = entries_of((), runs)
    table = phrase_table(entries)
    assert table is not None and table.header == ("phrase", "a seed 0, unfinished")
    assert [[cell.text for cell in row] for row in table.rows][-1] == ["word 1", "1.0 → 0.0"]
    assert len(table.rows) == MAX_PHRASES + 2 and table.note.endswith("Never said: word 0.")
    write_jsonl(run.metrics, [{"step": 0, "probe/reflection/keyword/wait": 0.0}])
    runs = read_runs([tmp_path]).runs
    assert not [one for one in charts_for(runs, ()) if one.place == "phrases"]
    assert phrase_table(entries_of((), runs)) is None


def test_repetition_has_a_chart_and_no_band_that_takes_a_mean_for_a_count(tmp_path):
    run = write_run(tmp_path / "a" / "seed0", is_finished=False)
    rates = {"probe/repetition/repeated_rate": 0.25, "probe/repetition/looping_rate": 0.25}
    write_jsonl(run.metrics, [{"step": 0, **rates}])
    found = findings([tmp_path])
    curves = drawn(found, keyword_lists={}, examples_of=lambda node: ()).curves
    assert "repetition" in {one.key for one in charts_for(found.runs.runs, ())}
    assert [line["band"] for key in rates for line in curves[key] if line] == ["", "items"]
