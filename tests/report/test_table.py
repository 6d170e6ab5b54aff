"""The table that a run ends with: accuracy never alone, and nothing invented where nothing was measured."""

from __future__ import annotations

import pytest

from visual_r1.files import write_json, write_text
from visual_r1.report.table import print_run, run_table, table_of_run
from visual_r1.run_folder import RunFolder, RunFolderError


def measured(accuracy):
    interval = [accuracy - 0.05, accuracy + 0.05]
    return {"num_items": 100, "accuracy": accuracy, "accuracy_interval": interval, "chance": 0.25, "majority": 0.3}


def summary(*, steps=60, moments=("before", "after")):
    values = {"name": "base-grpo", "seed": 0, "steps": steps, "wall_seconds": 252.4, "commit": "0123456789abcdef"}
    values |= {"benchmark": "spatial", "num_items": 400, "chance": 0.3125, "majority": 0.35}
    for moment, accuracy in (("before", 0.525), ("after", 0.88)):
        if moment in moments:
            values |= {
                f"accuracy_{moment}": accuracy,
                f"accuracy_{moment}_interval": [accuracy - 0.04, accuracy + 0.03],
                f"parse_rate_{moment}": 0.97,
                f"truncated_rate_{moment}": 0.005,
                f"length_{moment}": 24.04,
                f"reflection_{moment}": 0.0,
            }
    categories = {"Count": 0.4, "Depth": 0.6}
    values["by_category"] = {
        name: {moment: measured(value) for moment in moments} for name, value in categories.items()
    }
    return values


def cells(text, label):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_accuracy_stands_beside_its_items_its_interval_and_its_baselines(tmp_path):
    text = run_table(summary(), figure=tmp_path / "figure.png")
    before_and_after = ["52.5 % [48.5, 55.5]", "88.0 % [84.0, 91.0]"]
    assert cells(text, "accuracy") == ["accuracy (400 items)", *before_and_after, "31.2 %", "35.0 %"]
    assert cells(text, "Count")[1:] == ["40.0 % [35.0, 45.0]"] * 2 + ["25.0 %", "30.0 %"]
    assert cells(text, "response length")[1:] == ["24.0", "24.0"]
    assert cells(text, "cut at the limit")[1:] == ["0.5 %", "0.5 %"]
    assert "base-grpo: seed 0, 60 steps, 4 min 12 s, commit 0123456789" in text
    assert text.endswith(f"figure: {tmp_path / 'figure.png'}")


def test_a_run_without_training_has_one_column():
    text = run_table(summary(steps=0, moments=("after",)))
    assert "before" not in text and "after" not in text
    assert cells(text, "accuracy")[1:] == ["88.0 % [84.0, 91.0]", "31.2 %", "35.0 %"]


def test_what_is_missing_is_a_dash_and_not_a_number():
    text = run_table({"steps": 1})
    assert cells(text, "accuracy")[1:] == ["-"] * 4
    assert "response length" not in text  # a row without any number says nothing


def by_scorer(name):
    strict = {"accuracy": 0.5, "accuracy_interval": [0.45, 0.55], "chance": 0.3, "majority": 0.35, "parse_rate": 0.9}
    lenient = {**strict, "accuracy": 0.7, "accuracy_interval": [0.65, 0.75], "blank_accuracy": 0.4, "parse_rate": 1.0}
    none = {"accuracy": None, "problem": "no item is from Omni3D"}
    return {"strict": strict, "reference": lenient, "cambrian": none}[name]


def test_the_scorers_stand_side_by_side():
    values = summary()
    values["scorers"] = {
        name: {"before": by_scorer("strict"), "after": by_scorer(name)} for name in ("strict", "reference", "cambrian")
    }
    text = run_table(values)
    rows = [line for line in text.splitlines() if line.startswith("reference")]
    assert [row.split() for row in rows] == [
        ["reference", "before", "50.0", "%", "[45.0,", "55.0]", "30.0", "%", "35.0", "%", "-", "90.0", "%"],
        ["reference", "after", "70.0", "%", "[65.0,", "75.0]", "30.0", "%", "35.0", "%", "40.0", "%", "100.0", "%"],
    ]
    assert "no cambrian: no item is from Omni3D" in text
    assert max(map(len, text.splitlines())) <= 100


def test_one_scorer_is_the_headline_and_stands_there_alone():
    values = summary()
    values["scorers"] = {"strict": {"before": by_scorer("strict"), "after": by_scorer("strict")}}
    assert run_table(values) == run_table(summary())


def test_swapped_options_are_shown_where_they_were_asked():
    assert "both orders" not in run_table(summary())
    text = run_table({**summary(), "swap_consistency_after": 0.25, "both_orders_accuracy_after": 0.125})
    assert cells(text, "same words in both orders")[1:] == ["-", "25.0 %"]
    assert cells(text, "right in both orders")[1:] == ["-", "12.5 %"]


def test_responses_made_elsewhere_have_no_seed_and_no_commit():
    values = {"name": "x.jsonl", "num_responses": 398, "num_missing": 2, "benchmark": "cvbench", "accuracy_after": 0.5}
    text = run_table(values)
    assert text.startswith("x.jsonl: 398 responses, 2 missing and counted as wrong\non cvbench")
    assert "seed" not in text and "measured" in text


def test_a_file_of_a_run_has_both_moments():
    text = run_table({"num_responses": 4, "accuracy_before": 0.25, "accuracy_after": 0.5})
    assert cells(text, "accuracy")[1:3] == ["25.0 %", "50.0 %"]


def test_it_fits_a_terminal():
    assert max(map(len, run_table(summary()).splitlines())) <= 100


def test_the_table_of_a_run_needs_a_finished_run(tmp_path, capsys):
    folder = RunFolder(tmp_path / "base-grpo" / "seed0")
    with pytest.raises(RunFolderError, match="not a run folder"):
        table_of_run(folder)
    write_text(folder.config, "seed: 0\n")
    with pytest.raises(RunFolderError, match="not finished"):
        table_of_run(folder)
    write_json(folder.summary, summary())
    print_run(summary())
    assert capsys.readouterr().out.strip() == table_of_run(folder)
