"""Reports across runs: what is averaged, paired, compared, warned about, and named as left out."""

from __future__ import annotations

import csv
import io
import json
import shutil
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from tests.finished_runs import write_run
from visual_r1.files import read_json, write_json, write_parquet, write_text
from visual_r1.report.across import _num_probed, findings
from visual_r1.report.cautions import cautions
from visual_r1.report.comparisons import Comparison, _adjusted
from visual_r1.report.markdown import as_markdown
from visual_r1.report.rollouts import Sampled
from visual_r1.report.runs import read_runs
from visual_r1.report.tables import behaviour_table
from visual_r1.report.tidy import as_csv
from visual_r1.statistics import Interval, ItemStratum, difference_over_seeds, mean_over_seeds


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two configurations with two seeds each, the second the better one; nobody may change them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / "plain" / f"seed{seed}", seed=seed, accuracy=(0.5, 0.55), size=120)
        better = {"method": {"name": "dapo"}}
        write_run(folder / "better" / f"seed{seed}", seed=seed, accuracy=(0.5, 0.98), size=120, config=better)
    return folder


@pytest.fixture(scope="module")
def found(runs):
    return findings([runs / "plain", runs / "better"])


def fact(results, measure, **which) -> Any:
    """A number that must be there."""
    measured = results.get(measure, **which)
    assert measured is not None, measure
    return measured


def left_out(found):
    return [(Path(one.where).parent.name, one.what, one.why) for one in found.left_out]


def test_seeds_of_one_configuration_are_one_group(found):
    assert [(group.label, group.seeds) for group in found.groups] == [("plain", (0, 1)), ("better", (0, 1))]
    assert not found.left_out


def of_build(build: int, **config: Any) -> dict[str, Any]:
    """The configuration of a run that starts from one of a scale's builds."""
    checkpoints = {name: f"models/seed{build}/nano-{name}" for name in ("base", "instruct")}
    scale = {"max_steps": 10, "organism_seed": build, "checkpoints": checkpoints}
    return {"scale": scale, "model": {"name": "base", "path": checkpoints["base"], "style": "base"}, **config}


def test_seeds_that_each_start_from_a_build_of_their_own_are_one_group_and_paired(tmp_path):
    for seed in (0, 1, 2):
        # The third build is hard for both, so that only seed by seed their difference is plain.
        shares = (0.5, 0.2) if seed == 2 else (0.9, 0.6)
        for name, share in zip(("plain", "worse"), shares, strict=True):
            config = of_build(seed, method={"name": name})
            write_run(tmp_path / name / f"seed{seed}", seed=seed, accuracy=(0.1, share), size=120, config=config)
    found = findings([tmp_path / "plain", tmp_path / "worse"])
    assert [(group.label, group.seeds) for group in found.groups] == [("plain", (0, 1, 2)), ("worse", (0, 1, 2))]
    assert found.groups[0].is_paired_with(found.groups[1])
    ones, others = (np.array(group.verdicts("after")) for group in found.groups)
    (one,) = found.comparisons
    assert one.difference == difference_over_seeds(others, ones, paired=True) and one.is_resolved
    apart = difference_over_seeds(others, ones)
    assert apart.high - apart.low > 2 * (one.difference.high - one.difference.low)


def test_seeds_of_one_build_are_not_paired(found):
    assert not found.groups[0].is_paired_with(found.groups[1])


def test_builds_that_were_varied_for_each_seed_are_groups_of_their_own(tmp_path):
    for build in (0, 1):
        for seed in (0, 1):
            write_run(tmp_path / f"build{build}" / f"seed{seed}", seed=seed, config=of_build(build))
    found = findings([tmp_path])
    assert [(group.label, group.seeds) for group in found.groups] == [("build0", (0, 1)), ("build1", (0, 1))]
    assert not found.left_out


def test_a_model_of_the_users_own_is_no_build_of_the_scale(tmp_path):
    for seed in (0, 1):
        config = of_build(seed)
        config["model"]["path"] = f"my/model{seed}"
        write_run(tmp_path / "mine" / f"seed{seed}", seed=seed, config=config)
    assert [group.seeds for group in findings([tmp_path]).groups] == [(0,), (1,)]


def test_a_groups_accuracy_is_the_mean_of_its_seeds_with_an_interval_over_seeds_and_items(found, runs):
    by_seed = [read_json(runs / "better" / f"seed{seed}" / "summary.json")["accuracy_after"] for seed in (0, 1)]
    accuracy = fact(found.by_group[1], "accuracy")
    assert accuracy.value == pytest.approx(sum(by_seed) / 2)
    assert accuracy.low < accuracy.value < accuracy.high and accuracy.num_items == 120


def test_the_gain_is_paired_with_the_one_starting_point_of_all_seeds(found, runs):
    summaries = [read_json(runs / "better" / f"seed{seed}" / "summary.json") for seed in (0, 1)]
    gains = [one["accuracy_after"] - one["accuracy_before"] for one in summaries]
    assert len(found.groups[1].start()) == 1
    assert fact(found.by_group[1], "gain").value == pytest.approx(sum(gains) / 2)


def test_a_point_costs_time_and_tokens_and_no_price_is_made_up_without_a_gain(found):
    better = found.by_group[1]
    points = 100 * fact(better, "gain").value
    assert fact(better, "seconds_per_point").value == pytest.approx(100.5 / points)
    assert fact(better, "tokens_per_point").value == pytest.approx(10_000 / points)
    worse = findings([found.runs.runs[0].folder.path]).by_run[0]
    assert (worse.get("seconds_per_point") is None) == (fact(worse, "gain").value <= 0)


def test_a_clear_difference_is_resolved_and_says_which_is_better(found):
    (one,) = found.comparisons
    assert (one.one, one.other, one.num_items, one.num_seeds) == ("better", "plain", 120, (2, 2))
    assert one.difference.low > 0 and one.p is None
    (row,) = [row for row in csv.DictReader(io.StringIO(as_csv(found))) if row["kind"] == "difference"]
    assert float(row["value"]) == pytest.approx(one.difference.estimate) and row["against"] == "plain"


def test_single_seeds_are_tested_by_mcnemar_and_raised_by_holm(tmp_path):
    shares = {"a": 0.5, "b": 0.52, "c": 0.99}
    for name, share in shares.items():
        write_run(tmp_path / name / "seed0", accuracy=(0.5, share), size=120, config={"method": {"name": name}})
    found = findings([tmp_path])
    by_pair = {(one.one, one.other): one for one in found.comparisons}
    assert len(by_pair) == 3 and all((one.adjusted_p or 0) >= (one.p or 1) for one in by_pair.values())
    assert by_pair["c", "a"].verdict == "c is better" and by_pair["c", "a"].remark == "of one seed"
    assert by_pair["b", "a"].verdict == "not resolved"
    assert any(one.about == "too few seeds" and "single seed" in one.text for one in found.cautions)


def test_an_unfinished_run_keeps_its_curves_and_loses_its_place_in_the_tables(tmp_path):
    write_run(tmp_path / "done" / "seed0")
    write_run(tmp_path / "done" / "seed1", seed=1, is_finished=False, steps=(0, 5))
    found = findings([tmp_path / "done"])
    assert [group.seeds for group in found.groups] == [(0,)] and len(found.runs.unfinished) == 1
    assert found.runs.unfinished[0].rows
    (left,) = left_out(found)
    assert "unfinished or killed (it came to step 5 of 10)" in left[2]


def test_what_is_not_a_run_is_named_and_the_report_is_made(tmp_path):
    write_run(tmp_path / "runs" / "seed0")
    (tmp_path / "other").mkdir()
    found = findings([tmp_path / "other", tmp_path / "nowhere", tmp_path / "runs"])
    assert len(found.runs.runs) == 1
    assert ["no config.yaml" in found.left_out[0].why, "no such folder" in found.left_out[1].why] == [True, True]


def test_without_any_run_there_is_one_line_and_no_report(tmp_path):
    with pytest.raises(ValueError, match="not a run: it has no config.yaml"):
        findings([tmp_path])


@pytest.mark.parametrize(
    "file", ["config.yaml", "summary.json", "metrics.jsonl", "evaluation.parquet", "provenance.json"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff{[", b'"a text"'])
def test_a_damaged_file_costs_what_was_in_it_and_no_more(tmp_path, runs, file, content):
    shutil.copytree(runs / "plain" / "seed0", tmp_path / "whole" / "seed0")
    shutil.copytree(runs / "better" / "seed0", tmp_path / "broken" / "seed0")
    (tmp_path / "broken" / "seed0" / file).write_bytes(content)
    found = findings([tmp_path])
    assert any(run.name == "whole" for run in found.runs.runs)
    assert as_markdown(found) and as_csv(found)
    assert any("broken" in one.where for one in found.left_out)


def test_a_number_that_is_none_is_a_gap_and_is_named(tmp_path):
    run = write_run(tmp_path / "a" / "seed0")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines[1]["kl"] = float("nan")
    write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in lines))
    found = findings([tmp_path / "a"])
    assert [("kl" in row) for row in found.runs.runs[0].rows] == [False, False, True]
    (left,) = left_out(found)
    assert left[1] == "kl at step 5" and "NaN" in left[2]


def test_a_result_that_is_no_number_is_named_and_the_seeds_are_reported(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / "a" / f"seed{seed}", seed=seed)
    write_run(tmp_path / "b" / "seed0", config={"method": {"name": "sft"}})
    summary: dict[str, Any] = dict(read_json(run.summary))
    summary |= {"accuracy_after": float("nan"), "length_after_interval": "wide"}
    summary |= {"wall_seconds": "../x", "length_after": [1], "scorers": 3, "commit": {}}
    summary["by_category"]["Count"]["after"]["accuracy_interval"] = [0.1, float("inf")]
    write_text(run.summary, json.dumps(summary))
    write_text(
        run.provenance,
        json.dumps({**read_json(run.provenance), "resumes": 2.5, "versions": None, "data": {"benchmark": {}}}),
    )
    found = findings([tmp_path])
    assert as_markdown(found) and found.by_group[0].get("accuracy") is None
    assert {one.what for one in found.left_out} >= {
        "accuracy_after of summary.json",
        *(
            f"{key} of summary.json"
            for key in ("length_after_interval", "wall_seconds", "length_after", "scorers", "commit")
        ),
        "by_category.Count.after.accuracy_interval of summary.json",
        "resumes of provenance.json",
        "versions of provenance.json",
    }


def test_an_older_version_is_shown_as_far_as_it_goes(tmp_path):
    run = write_run(tmp_path / "a" / "seed0")
    summary = read_json(run.summary)
    write_json(run.summary, {key: value for key, value in summary.items() if key not in ("scorers", "style")})
    found = findings([tmp_path / "a"])
    assert fact(found.by_run[0], "accuracy").value == summary["accuracy_after"]
    (left,) = left_out(found)
    assert left[1] == "scorers, style" and "older version" in left[2]


def test_other_benchmarks_and_other_items_are_not_subtracted(tmp_path):
    write_run(tmp_path / "a" / "seed0")
    write_run(tmp_path / "b" / "seed0", size=24, config={"method": {"name": "sft"}})
    write_run(tmp_path / "c" / "seed0", benchmark="else", config={"benchmark": {"name": "else"}})
    found = findings([tmp_path])
    assert not found.comparisons
    whys = " ".join(one.why for one in found.left_out)
    assert "they were asked other items (24 and 40, 24 of them the same)" in whys and "other questions" in whys


def test_a_scorer_that_a_run_does_not_have_is_named(tmp_path):
    write_run(tmp_path / "a" / "seed0")
    write_run(tmp_path / "b" / "seed0", scorers=("strict",), config={"method": {"name": "sft"}})
    text = as_markdown(findings([tmp_path]))
    assert "by the scorer reference" in text and "Not scored by it: b." in text


def test_the_same_run_counts_once(tmp_path):
    write_run(tmp_path / "a" / "seed0")
    write_run(tmp_path / "copy" / "seed0")
    found = findings([tmp_path / "a", tmp_path / "a" / "seed0", tmp_path / "copy"])
    assert [run.name for run in found.runs.runs] == ["a"]
    assert "counts once" in found.left_out[0].why


@pytest.mark.parametrize(
    ("key", "value", "about"),
    [
        ("truncated_rate_after", 0.11, "truncation"),
        ("parse_rate_after", 0.89, "parse rate"),
        ("probe_accuracy_after", 0.1, "training against evaluation"),
    ],
)
def test_a_rate_beyond_its_bound_is_a_warning(tmp_path, key, value, about):
    run = write_run(tmp_path / "a" / "seed0", accuracy=(0.5, 0.9))
    assert about not in {one.about for one in findings([tmp_path]).cautions}
    write_json(run.summary, {**read_json(run.summary), key: value})
    assert about in {one.about for one in findings([tmp_path]).cautions}


def test_how_a_run_was_made_is_a_warning_where_it_matters(tmp_path):
    first = write_run(tmp_path / "a" / "seed0")
    write_run(tmp_path / "a" / "seed1", seed=1)
    assert not {"resumed", "uncommitted code", "different code"} & {one.about for one in findings([tmp_path]).cautions}
    record = read_json(first.provenance)
    record["code"] = {"commit": "f" * 40, "is_dirty": True}
    write_json(first.provenance, {**record, "resumes": [{}]})
    assert {"resumed", "uncommitted code", "different code"} <= {one.about for one in findings([tmp_path]).cautions}


def test_a_prompt_of_the_papers_code_is_a_warning(tmp_path):
    model = {"name": "base", "path": "models/seed0/nano-base", "style": "instruct", "prompt": "paper"}
    write_run(tmp_path / "a" / "seed0", config={"model": model})
    assert "prompt" in {one.about for one in findings([tmp_path]).cautions}


def test_markdown_keeps_names_from_being_markup(tmp_path):
    write_run(tmp_path / "a|b<i>" / "seed0")
    assert "a\\|b&lt;i>" in as_markdown(findings([tmp_path / "a|b<i>"]))


def test_configurations_that_differ_are_shown_key_by_key(found):
    assert found.differences == {"method.name": ("grpo", "grpo", "dapo", "dapo")}


def test_causal_measures_are_shown_where_they_are_and_in_what_shape_they_are(tmp_path):
    run = write_run(tmp_path / "a" / "seed0")
    assert not findings([tmp_path]).reflection_tables()
    row: dict[str, object] = {
        "measure": "accuracy",
        "condition": "cut",
        "against": "whole",
        "model": "after",
        "source": "probe",
    }
    row |= {"keywords": "default", "unit": "difference", "estimate": -0.05, "interval": [-0.1, 0.01], "n": 131}
    others = [{**row, "model": "step 5"}, {**row, "keywords": "oat_zero"}, "no row", {**row, "estimate": None}]
    sections = [{"name": "cut", "title": "Better?", "note": "A note.", "rows": [row, *others]}, "no section"]
    record = {"keywords": "default", "sections": sections, "left_out": ["probe: too few"]}
    write_json(run.path / "reflection.json", record)
    found = findings([tmp_path])
    (table,) = found.reflection_tables()
    assert (table.title, len(table.rows)) == ("Better?", 2)
    assert (table.rows[0][3].text, table.rows[0][3].below) == ("−5.0 points", "[−10.0, 1.0]")
    assert any(one.why == "probe: too few" for one in found.left_out)
    assert found.reflection_summary() is None
    rows = [
        {**row, "measure": "reflection_rate", "condition": "all completions", "against": None, "unit": "share"}
        | {"estimate": share, "interval": [share - 0.1, share + 0.1], "model": model, "source": source}
        for model, source, share in (
            ("all steps", "saved train", 0.3),
            ("before", "probe", 0.2),
            ("after", "probe", 0.8),
        )
    ]
    write_json(run.path / "reflection.json", {**record, "sections": [{"name": "rates", "rows": rows}]})
    short = findings([tmp_path]).reflection_summary()
    assert short is not None and all(len(line) == len(short.header) for line in short.rows)
    assert [(line[0].below, line[1].text, line[1].below) for line in short.rows] == [
        ("before", "20.0", "[10.0, 30.0]\nn 131"),
        ("after", "80.0", "[70.0, 90.0]\nn 131"),
    ]
    write_json(run.path / "reflection.json", {"sections": 3, "left_out": 4})
    assert not findings([tmp_path]).reflection_tables()


def compared(p, *, estimate=0.05, is_resolved=False):
    return Comparison(
        benchmark="spatial",
        one="b",
        other="a",
        difference=Interval(estimate, estimate - 0.03, estimate + 0.03),
        num_comparisons=2,
        num_items=400,
        num_seeds=(3, 3),
        p=p,
        is_resolved=is_resolved,
        smallest=0.08,
    )


def test_p_values_share_the_five_percent_with_the_intervals_beside_them():
    alone, mixed = _adjusted([compared(0.03)]), _adjusted([compared(0.03), compared(None, is_resolved=True)])
    assert (alone[0].adjusted_p, alone[0].is_resolved) == (0.03, True)
    assert (mixed[0].adjusted_p, mixed[0].is_resolved) == (0.06, False) and mixed[1].is_resolved


def test_a_resolved_difference_is_not_called_one_that_cannot_be():
    (resolved,) = cautions((), (), [compared(None, is_resolved=True)])
    (open_question,) = cautions((), (), [compared(None)])
    assert "5.0 points is resolved, but smaller than the 8.0 that 400 items and 3 seeds" in resolved.text
    assert "5.0 points is not resolved, and smaller than the 8.0" in open_question.text
    assert not cautions((), (), [compared(None, estimate=0.09)])


def test_a_single_item_is_compared_with_nothing(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name / "seed0", size=1, config={"method": {"name": name}})
    found = findings([tmp_path])
    assert not found.comparisons and any("a single item" in one.why for one in found.left_out)


def test_a_band_of_a_category_is_over_its_own_examples():
    rows = [{"source": "probe", "example_id": str(i), "category": "Count" if i < 4 else "Depth"} for i in range(16)]
    sampled = [Sampled(step=0, rows=rows)]
    assert _num_probed(sampled, "probe/accuracy") == 16 and _num_probed(sampled, "probe/accuracy/Count") == 4


def rewritten(run, change):
    """Lets `change` alter each row of a run's items."""
    rows = pyarrow.parquet.read_table(run.evaluation_items).to_pylist()
    write_parquet(run.evaluation_items, [change(dict(row)) for row in rows])


def as_cvbench(run, *, sizes=(16, 8)):
    """Makes a run one on three collections, scored by Cambrian's rule, too."""
    count = iter(range(10**6))

    def change(row):
        place = next(count) % 40
        row["subset"] = "ADE20K" if place < sizes[0] else "COCO" if place < sum(sizes) else "Omni3D"
        return {**row, "correct_cambrian": row["correct"]}

    rewritten(run, change)
    summary = read_json(run.summary)
    rows = pyarrow.parquet.read_table(run.evaluation_items).to_pylist()
    weights = {"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5}
    summary["scorers"]["cambrian"] = {
        when: {
            "accuracy": sum(
                weight * fmean(row["correct"] for row in rows if (row["when"], row["subset"]) == (when, subset))
                for subset, weight in weights.items()
            ),
            "accuracy_interval": [0.0, 1.0],
        }
        for when in ("before", "after")
    }
    write_json(run.summary, summary)


def test_a_weighted_accuracy_and_its_gain_are_weighted_over_seeds_and_items(tmp_path):
    for seed in (0, 1, 2):
        as_cvbench(write_run(tmp_path / "a" / f"seed{seed}", seed=seed, accuracy=(0.5, 0.97)))
    results = findings([tmp_path]).by_group[0]
    before = fact(results, "accuracy", when="before", scorer="cambrian")
    after, gain = (fact(results, measure, scorer="cambrian") for measure in ("accuracy", "gain"))
    assert gain.value == pytest.approx(after.value - before.value)
    assert gain.value != pytest.approx(fact(results, "gain").value, abs=1e-4)
    assert 0 <= after.low < after.value < after.high <= 1 and 0 <= before.low < before.value < before.high
    tables = [
        values for values in (one.correct["cambrian"] for one in findings([tmp_path]).groups[0].answered("after"))
    ]
    strata = [ItemStratum(0.25, range(16)), ItemStratum(0.25, range(16, 24)), ItemStratum(0.5, range(24, 40))]
    assert (after.low, after.high) == pytest.approx(
        (mean_over_seeds(tables, strata=strata).low, mean_over_seeds(tables, strata=strata).high)
    )


def test_a_collection_of_one_item_gives_no_gain_and_no_interval_beyond_a_share(tmp_path):
    for seed in (0, 1):
        as_cvbench(write_run(tmp_path / "a" / f"seed{seed}", seed=seed, accuracy=(0.5, 0.9)), sizes=(16, 1))
    results = findings([tmp_path]).by_group[0]
    after = fact(results, "accuracy", scorer="cambrian")
    assert results.get("gain", scorer="cambrian") is None and 0 <= after.low <= after.high <= 1


def test_accuracy_on_blank_images_is_over_items_too_and_paired_with_that_on_images(tmp_path):
    runs = [write_run(tmp_path / "a" / f"seed{seed}", seed=seed, accuracy=(0.5, 0.9)) for seed in (0, 1, 2)]
    results = findings([tmp_path]).by_group[0]
    blank, above = fact(results, "blank_accuracy"), fact(results, "above_blank")
    items = [one.measured["blank_accuracy"] for one in findings([tmp_path]).groups[0].answered("after")]
    assert (blank.low, blank.high) == (mean_over_seeds(items).low, mean_over_seeds(items).high)
    assert above.value == pytest.approx(fact(results, "accuracy").value - blank.value)
    for run in runs:
        rewritten(run, lambda row: {**row, "blank_correct": False})
    assert "blank images" not in {one.about for one in findings([tmp_path]).cautions}
    for run in runs:
        rewritten(run, lambda row: {**row, "blank_correct": row["correct"]})
    assert "blank images" in {one.about for one in findings([tmp_path]).cautions}


def test_seeds_that_agree_are_not_certain(tmp_path):
    for seed in (0, 1, 2):
        run = write_run(tmp_path / "a" / f"seed{seed}", seed=seed)
        write_json(run.summary, {**read_json(run.summary), "parse_rate_after": 0.9, "probe_accuracy_after": 0.75})
    results = findings([tmp_path]).by_group[0]
    assert (fact(results, "parse_rate").low, fact(results, "probe_accuracy").high) == (None, None)
    assert fact(results, "truncated_rate").value == 0 and fact(results, "truncated_rate").high > 0


def test_one_seed_resolves_only_if_seeds_did_not_matter_and_says_so(tmp_path):
    write_run(tmp_path / "a" / "seed0", accuracy=(0.5, 0.5))
    write_run(tmp_path / "b" / "seed0", accuracy=(0.5, 0.55), config={"method": {"name": "sft"}})
    write_run(tmp_path / "c" / "seed0", steps=(0,), config={"method": {"name": "eval"}})
    write_run(tmp_path / "d" / "seed0", steps=(0,), config={"method": {"name": "eval"}, "model": {"name": "other"}})
    found = findings([tmp_path])
    said = {(one.one, one.other): one.takes_seeds_as_equal for one in found.comparisons}
    assert said["b", "a"] and said["c", "a"] and not said["d", "c"]
    assert "four times in five, if seeds did not matter" in " ".join(one.text for one in found.cautions)
    assert "if seeds did not matter" in as_markdown(found)


def test_a_model_that_was_only_asked_several_times_is_one(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / "only" / f"seed{seed}", seed=seed, steps=(0,), config={"method": {"name": "eval"}})
        rewritten(run, lambda row: {**row, "correct": int(row["example_id"][-1]) % 2 == 0})
        write_run(tmp_path / "trained" / f"seed{seed}", seed=seed)
    (one,) = findings([tmp_path]).comparisons
    assert one.num_seeds == (2, None)


def test_the_same_items_in_another_order_are_paired(tmp_path):
    write_run(tmp_path / "a" / "seed0", accuracy=(0.5, 0.6))
    other = write_run(tmp_path / "b" / "seed0", accuracy=(0.5, 0.9), config={"method": {"name": "sft"}})
    (straight,) = findings([tmp_path]).comparisons
    rows = pyarrow.parquet.read_table(other.evaluation_items).to_pylist()
    write_parquet(other.evaluation_items, rows[:40] + rows[47:] + rows[40:47])
    (turned,) = findings([tmp_path]).comparisons
    assert turned == straight and fact(findings([tmp_path / "b"]).by_run[0], "gain").num_items == 40


def test_the_same_ids_with_other_questions_or_images_are_not_paired(tmp_path):
    write_run(tmp_path / "a" / "seed0")
    other = write_run(tmp_path / "b" / "seed0", config={"method": {"name": "sft"}})
    record = read_json(other.provenance)
    write_json(other.provenance, {**record, "data": {**record["data"], "benchmark": "else"}})
    found = findings([tmp_path])
    assert not found.comparisons and "the images are others" in " ".join(one.why for one in found.left_out)
    write_json(other.provenance, record)
    rewritten(other, lambda row: {**row, "question": row["question"] + "?" * row["example_id"].endswith("7")})
    found = findings([tmp_path])
    whys = " ".join(one.why for one in found.left_out)
    assert not found.comparisons and "4 of 40 items have the same id and ask something else" in whys


def test_a_second_run_of_one_seed_that_came_out_otherwise_is_told_apart(tmp_path):
    write_run(tmp_path / "a" / "seed0")
    other = write_run(tmp_path / "b" / "seed0")
    summary = read_json(other.summary)
    write_json(other.summary, {**summary, "commit": "f" * 40, "accuracy_after": 0.123})
    (left,) = findings([tmp_path]).left_out
    assert "counts once; made by commit ffffffffff, that one by 0123456789" in left.why
    assert "yet its numbers are others: accuracy_after 0.123 and" in left.why


def test_a_price_has_no_upper_bound_where_there_may_be_no_gain(tmp_path):
    def prices(name, **run):
        write_run(tmp_path / name / "seed0", **run)
        found = findings([tmp_path / name])
        price: Any = found.by_run[0].get("seconds_per_point")
        return price, behaviour_table(found.by_run, title="").rows[0][-2].below

    price, shown = prices("little", accuracy=(0.5, 0.8))
    assert price.low < price.value < price.high == inf and shown.endswith("no bound]")
    price, _ = prices("much", accuracy=(0.3, 0.99))
    assert price.low < price.value < price.high < inf
    assert prices("worse", accuracy=(0.9, 0.3)) == (None, "no gain")
    assert prices("asked", steps=(0,)) == (None, "not trained")
    assert ",inf," in as_csv(findings([tmp_path / "little"]))


def test_seeds_are_ordered_as_numbers(tmp_path):
    for seed in (10, 2, 0, 1):
        write_run(tmp_path / "a" / f"seed{seed}", seed=seed)
    found = findings([tmp_path / "a"])
    assert found.groups[0].seeds == (0, 1, 2, 10) == tuple(run.seed for run in found.runs.runs)


def test_reading_changes_nothing(runs):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    read_runs([runs])
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}


def test_an_item_of_another_category_is_another_item(tmp_path):
    run = write_run(tmp_path / "a" / "seed0")
    moved = {"when": "before", "category": "Moved"}
    rewritten(run, lambda row: {**row, **(moved if row["when"] == "before" and row["category"] == "Count" else {})})
    found = findings([tmp_path / "a"])
    assert as_markdown(found) and found.by_group[0].get("gain") is None
    assert found.by_group[0].get("accuracy", category="Count") is not None
