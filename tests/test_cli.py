"""The visual-r1 command: quick to answer, and a mistake is one line and exit code 2."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from visual_r1.cli import main
from visual_r1.files import read_json, write_json, write_jsonl, write_parquet, write_text

COMMANDS = (
    ["--help"],
    ["organism", "--help"],
    ["organism", "build", "--help"],
    ["data", "show", "--help"],
    ["data", "check", "--help"],
    ["doctor", "--help"],
    ["figure", "--help"],
    ["published", "--help"],
    ["score", "--help"],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_is_there(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0 and "usage: visual-r1" in capsys.readouterr().out


def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "visual_r1.cli", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which other jobs on the machine do not lengthen: 0.1 s alone, over 1 s with torch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


def test_data_show_writes_a_sheet(tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["data", "show", "dataset=spatial", "-n", "3", "-o", str(sheet)]) == 0
    assert Image.open(sheet).size[0] > 600
    assert "3 of " in capsys.readouterr().out


def test_data_show_takes_the_settings_that_a_run_takes(tmp_path, capsys):
    arguments = ["data", "show", "dataset.probe.size=2", "--split", "probe", "-o", str(tmp_path / "sheet.png")]
    assert main(arguments) == 0
    assert "2 of 2 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "show", "dataset=spatal"], "spatal"),
        (["data", "show", "dataset.train.sise=3"], "sise"),
        (["data", "show", "-o", "sheet.txt"], "sheet.txt"),
        (["figure", "runs/no/such/run"], "runs/no/such/run is not a run folder"),
        (["score", "--benchmark", "spatial", "none.jsonl"], "none.jsonl"),
        (["score", "--benchmark", "spatail", "none.jsonl"], "spatail"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("visual-r1: ")
    assert not captured.out and not list(tmp_path.iterdir())


def test_a_number_of_examples_below_one_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "show", "-n", "0"])
    assert stop.value.code == 2 and "positive" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("visual_r1.organisms.build.build", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["organism", "build", "anywhere"])


def test_organism_build_hands_its_options_on(monkeypatch, tmp_path):
    from visual_r1.organisms import build

    calls = []
    monkeypatch.setattr(build, "build", lambda out, **options: calls.append((out, options)) or [])
    monkeypatch.setattr(build, "build_trunk", lambda out, **options: calls.append((out, options)))
    out, shares = str(tmp_path), ["mixture.careful=0.04", "mixture.direct=0.40"]
    assert main(["organism", "trunk", out, "--seed", "3"]) == 0
    assert main(["organism", "build", out, "--seed", "3", "--trunk", "t", "--base-only", *shares]) == 0
    assert main(["organism", "build", out, "--organism", "micro", "--device", "cuda"]) == 0
    nano, micro = build.ORGANISMS["nano"], build.ORGANISMS["micro"]
    of_trunk = {"seed": 3, "num_threads": 1, "device": "cpu", "recipe": nano.recipe, "organism": nano}
    assert calls[0] == (tmp_path, of_trunk)
    options = calls[1][1]
    assert (options["trunk"], options["with_instruct"], options["organism"]) == (Path("t"), False, nano)
    assert (options["recipe"].mixture.careful, options["recipe"].mixture.direct) == (0.04, 0.40)
    assert [calls[2][1][key] for key in ("organism", "recipe", "device")] == [micro, micro.recipe, "cuda"]


def test_a_device_that_is_not_here_is_one_line_before_any_work(tmp_path, capsys):
    for command in ("trunk", "build"):
        assert main(["organism", command, str(tmp_path), "--device", "nowhere"]) == 2
        error = capsys.readouterr().err
        assert "device nowhere: " in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistyped_recipe_of_an_organism_is_one_line(tmp_path, capsys):
    assert main(["organism", "build", str(tmp_path), "mixture.carful=0.04"]) == 2
    assert "'mixture.carful' is unknown" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    sheet = str(tmp_path / "sheet.png")
    command = [sys.executable, "-m", "visual_r1.cli", "data", "show", "-n", "1", "-o", sheet]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


class TestFigure:
    @pytest.fixture
    def run(self, tmp_path):
        run = tmp_path / "base-grpo" / "seed0"
        write_text(run / "config.yaml", "seed: 0\n")
        return run

    def test_a_run_that_measured_nothing_says_so(self, run, capsys):
        assert main(["figure", str(run)]) == 2
        assert "nothing to draw" in capsys.readouterr().err

    def test_an_unfinished_run_shows_its_curves_so_far(self, run, capsys):
        write_jsonl(run / "metrics.jsonl", [{"step": 0, "probe/accuracy": 0.5}])
        assert main(["figure", str(run)]) == 0
        assert "not finished" in capsys.readouterr().out and (run / "figure.png").exists()

    def test_a_finished_run_prints_its_table(self, run, capsys):
        write_jsonl(run / "metrics.jsonl", [{"step": 0, "probe/accuracy": 0.5}])
        write_json(run / "summary.json", {"name": "base-grpo", "steps": 1, "accuracy_after": 0.75})
        assert main(["figure", str(run)]) == 0
        printed = capsys.readouterr().out
        assert "75.0 %" in printed and str(run / "figure.png") in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "show", "-n", "2", "scale.train_size=3", "-o", "sheet.png"],
        ["data", "show", "scale.train_size=3", "-n", "2", "-o", "sheet.png"],
        ["data", "show", "dataset=spatial", "-n", "2", "-o", "sheet.png", "scale.train_size=3"],
    ],
    ids=["between", "before", "before and after"],
)
def test_overrides_may_stand_anywhere(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0 and "2 of 3 examples" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--sead=3", "sheet.png"])
def test_what_is_no_override_is_refused(word, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "show", "-n", "2", "dataset=spatial", "-o", "sheet.png", word])
    assert stop.value.code == 2 and f"unrecognized arguments: {word}" in capsys.readouterr().err


class TestScore:
    """Responses made elsewhere end in the table that a run ends with."""

    def test_lines_are_scored_by_every_scorer_of_the_benchmark(self, tmp_path, capsys):
        path, out = tmp_path / "responses.jsonl", tmp_path / "out.json"
        write_jsonl(path, [{"id": number, "response": "I see a dog."} for number in range(8)])
        arguments = ["score", "--benchmark", "spatial", "scale.benchmark_size=8", str(path), "-o", str(out)]
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert f"{path}: 8 responses" in printed and str(out) in printed
        summary = read_json(out)
        assert summary["num_items"] == 8 and summary["accuracy_after"] == 0.0
        lenient = summary["scorers"]["reference"]["after"]
        # The first two of each kind have answer A and B; "a" is taken for A.
        assert lenient["accuracy"] == 4 / 8 and lenient["parse_rate"] == 0.0
        assert "50.0 %" in next(line for line in printed.splitlines() if line.startswith("reference"))

    def test_a_table_is_scored_whole_whatever_the_scale_takes(self, tmp_path, capsys):
        picture = io.BytesIO()
        Image.new("RGB", (56, 56)).save(picture, "PNG")
        row = {"image": {"bytes": picture.getvalue()}, "question": "Where?", "choices": ["left", "right"]}
        row |= {"answer": "(B)", "task": "Relation", "prompt": "Where?\n(A) left\n(B) right"}
        write_parquet(tmp_path / "test.parquet", [row] * 3)
        path = tmp_path / "responses.jsonl"
        write_jsonl(path, [{"id": number, "response": "<answer>right</answer>"} for number in range(3)])
        settings = [f"benchmark.path={tmp_path / 'test.parquet'}", "scale.benchmark_size=1"]
        assert main(["score", "--benchmark", "cvbench", *settings, str(path)]) == 0
        assert "accuracy (3 items)" in capsys.readouterr().out

    def test_missing_responses_have_to_be_allowed(self, tmp_path, capsys):
        path = tmp_path / "responses.jsonl"
        write_jsonl(path, [{"id": 0, "response": "<answer>A</answer>"}])
        arguments = ["score", "--benchmark", "spatial", "scale.benchmark_size=4", str(path)]
        assert main(arguments) == 2
        assert "no response to 3 of 4 items" in capsys.readouterr().err
        assert main([*arguments, "--allow-missing"]) == 0
        printed = capsys.readouterr().out
        assert "1 responses, 3 missing and counted as wrong" in printed and "25.0 %" in printed

    def test_the_papers_result_file_is_compared_with_its_own_verdicts(self, tmp_path, capsys):
        path = tmp_path / "CVBench_result.json"
        item = {"question": "Where?", "options": ["left", "right"], "task": "Relation", "ground_truth": "(B)"}
        results = [{**item, "response": "right", "correct": int(number != 1)} for number in range(3)]
        write_json(path, {"results": results, "accuracy": {}, "args": {}})
        assert main(["score", "--benchmark", "cvbench", str(path)]) == 0
        printed = capsys.readouterr().out
        assert "The file's own verdicts differ from the reference rule on 1 of 3 items: 1\n" in printed
        assert "no cambrian: results/0 has no subset" in printed
