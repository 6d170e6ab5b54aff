"""The aha-moment figure: drawn from what a run has measured, and honest about what it has not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from PIL import Image

from visual_r1.files import write_json, write_jsonl
from visual_r1.report.figure import aha_moment_figure, figure_of_run
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import write_rollouts

PROBE = {"probe/accuracy": 0.5, "probe/completions/mean_length": 24.0, "probe/reflection/any_rate": 0.1}
TRAINING = {"completions/mean_length": 25.0, "reflection/any_rate": None}
ROWS = [{"step": 0, **PROBE}, {"step": 1, **TRAINING}, {"step": 2, **PROBE, **TRAINING}]


def words(svg):
    return re.findall(r">([^<>\n]+)</text>", svg.read_text())


def test_a_full_run_has_three_panels_with_units(tmp_path):
    assert aha_moment_figure(ROWS, tmp_path / "figure.png", title="grpo seed 0", num_probe_items=64, chance=0.3)
    assert Image.open(tmp_path / "figure.png").width > 900
    found = words(tmp_path / "figure.svg")
    assert {"Accuracy", "Response length", "Reflection", "right answers (%)", "tokens per completion"} <= set(found)
    assert {"grpo seed 0", "held-out probe", "training rollouts", "95 % interval", "chance"} <= set(found)
    assert not any("Not measured" in word for word in found)


def test_the_accuracy_panel_shows_how_many_answers_can_be_read(tmp_path):
    aha_moment_figure([{**row, "probe/format/parse_rate": 0.6} for row in ROWS], tmp_path / "read.png")
    assert "readable answers" in words(tmp_path / "read.svg")
    aha_moment_figure(ROWS, tmp_path / "figure.png")
    assert "readable answers" not in words(tmp_path / "figure.svg")


def test_no_interval_is_drawn_without_a_number_of_items(tmp_path):
    aha_moment_figure(ROWS, tmp_path / "figure.png")
    assert "95 % interval" not in words(tmp_path / "figure.svg")


def test_a_missing_curve_leaves_its_panel_out_and_says_so(tmp_path):
    rows = [{"step": step, "probe/accuracy": 0.5, "probe/completions/mean_length": 9.0} for step in range(2)]
    assert aha_moment_figure(rows, tmp_path / "figure.png")
    found = words(tmp_path / "figure.svg")
    assert "Reflection" not in found and "Not measured in this run: reflection." in found


@pytest.mark.parametrize("rows", [[], [{"step": 0, "loss": 0.1, "probe/accuracy": None}]])
def test_without_a_curve_nothing_is_written(tmp_path, rows):
    assert not aha_moment_figure(rows, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_a_single_step_is_drawn_at_its_step(tmp_path):
    assert aha_moment_figure(ROWS[:1], tmp_path / "figure.png", num_probe_items=64)
    assert not any("." in word and word.replace(".", "").isdigit() for word in words(tmp_path / "figure.svg"))


def test_the_same_numbers_give_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        aha_moment_figure(ROWS, tmp_path / name, num_probe_items=64)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_figure_of_a_run_knows_its_probe_and_its_chance(tmp_path):
    folder = RunFolder(tmp_path / "grpo" / "seed3")
    write_jsonl(folder.metrics, ROWS)
    write_json(folder.evaluation, {"chance": 0.25})
    row = {
        "category": "Depth",
        "images": (),
        "question": "?",
        "completion": "",
        "solution": "A",
        "choice": None,
        "correct": False,
        "num_tokens": 1,
        "is_truncated": False,
        "keyword_hits": [],
    }
    rows = [{"example_id": str(index), **row} for index in range(8)]
    write_rollouts(folder.completions_at(0), rows, name="probe")  # ty: ignore[invalid-argument-type]
    assert figure_of_run(folder) == folder.figure
    assert {"grpo seed 3", "95 % interval", "chance"} <= set(words(folder.path / "figure.svg"))


def test_matplotlib_waits_until_something_is_drawn():
    script = "import sys, visual_r1.report.figure, visual_r1.report.table; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
