"""``visual-r1 probe`` on run folders with the shipped nano in them, whole and damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from visual_r1.cli import main
from visual_r1.config import build, compose_config, recorded, resolve
from visual_r1.files import write_json
from visual_r1.models import ModelSource
from visual_r1.reflection_probe import FRACTIONS, Options, _weights, probe
from visual_r1.reflection_record import SECTIONS, table
from visual_r1.report.tables import _IN_SHORT, reflection_summary
from visual_r1.rollout.remembering import Journal
from visual_r1.rollout.transformers import TransformersSampler
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import write_rollouts

ROOT = Path(__file__).parents[1]
BASE = ROOT / "models" / "seed0" / "nano-base"


def options(run, **replaced):
    arguments: dict[str, Any] = {
        "models": (),
        "steps": (),
        "num_examples": 6,
        "num_generations": 4,
        "seed": 0,
        "phrase": " Wait, let me check again.",
        "empty_phrase": " Wait, let me check again. I see the same thing.",
        "rollout": None,
        "saved_only": False,
        "command": "visual-r1 probe ...",
    }
    return Options(run=run, **{**arguments, **replaced})


def make_run(path, *, overrides=(), model=BASE):
    """A run folder as a finished run leaves it, as far as a probe looks: config, one saved step, and a model."""
    folder = RunFolder(path)
    config = resolve(compose_config([f"model.path={BASE}", "scale.num_threads=null", *overrides]))
    path.mkdir()
    folder.config.write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    rows: list[Any] = [
        {
            "example_id": f"spatial/train/0/{number // 2}",
            "category": "Relation",
            "images": (),
            "question": "Where is it?\n(A) left\n(B) right",
            "completion": "It is left. Wait, it is right." if number % 2 else "It is left.",
            "solution": "B",
            "choice": "B" if number % 2 else "A",
            "correct": bool(number % 2),
            "num_tokens": 8,
            "is_truncated": False,
            "keyword_hits": (),
        }
        for number in range(8)
    ]
    write_rollouts(folder.completions_at(1), rows, name="train")
    if model is not None:
        shutil.copytree(model, folder.model)
        write_json(folder.model / "visual_r1.json", {"style": "base", "prompt": "clean", "num_steps": 40})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "seed0")


@pytest.fixture(scope="module")
def record(folder):
    shown = []
    record = probe(options(folder.path), show=shown.append)
    assert shown[0] == table(record) and str(folder.reflection) in shown[1]
    return record


def test_the_record_is_what_was_written(folder, record):
    assert json.loads(folder.reflection.read_text()) == record
    assert {"version", "command", "commit", "seed", "settings", "models", "sections", "left_out"} <= set(record)
    assert [part["name"] for part in record["sections"]] == list(SECTIONS)
    assert record["settings"]["num_examples"] == 6 and record["settings"]["fractions"] == list(FRACTIONS)
    assert [(model["name"], model["step"]) for model in record["models"]] == [("before", 0), ("after", 40)]
    for part in record["sections"]:
        for row in part["rows"]:
            assert row["n"] > 0 and row["n_counts"] in ("items", "prompts", "rollouts")
            assert row["unit"] in ("share", "difference", "per_1k_tokens", "tokens")
            if row["interval"] is not None:
                assert row["interval"][0] <= row["estimate"] <= row["interval"][1]


def test_the_same_weights_give_the_same_numbers_before_and_after(record):
    for part in record["sections"]:
        rows = [row for row in part["rows"] if row["source"] == "probe"]
        changes = [row for row in rows if row["against"] == "the same at step 0"]
        assert all(row["estimate"] == 0 and row["model"] == "after" for row in changes)
        assert bool(changes) == (part["name"] in ("cut", "forced", "early"))
        rows = [row for row in rows if row not in changes]
        before, after = ([row for row in rows if row["model"] == name] for name in ("before", "after"))
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert (one["estimate"], one["interval"], one["baseline"]) == (other["estimate"], other["interval"], None)
            assert (other["baseline"], other["baseline_interval"]) == (one["estimate"], one["interval"])


def test_a_report_finds_what_it_shows_of_it(record):
    """All of it but what six items may not tell: a prompt whose completions reflect and do not."""
    run: Any = SimpleNamespace(reflection=record, label="base-grpo seed 0")
    known = {
        (row["measure"], row["condition"], row["against"])
        for section in record["sections"]
        for row in section["rows"]
        if row["source"] == "probe"
    }
    missing = [title for title, *wanted in _IN_SHORT if tuple(wanted) not in known]
    assert missing == []
    short = reflection_summary([run])
    assert short is not None and [row[0].below for row in short.rows] == ["before", "after"]


def test_rows_and_record_agree(folder, record):
    rows = pyarrow.parquet.read_table(folder.reflection_trials).to_pylist()
    for part in record["sections"]:
        for row in part["rows"]:
            if row["measure"] == "accuracy" and row["against"] is None and part["name"] in ("cut", "early", "image"):
                of = [one for one in rows if (one["model"], one["condition"]) == (row["model"], row["condition"])]
                assert len(of) == row["n"] and sum(one["correct"] for one in of) / len(of) == row["estimate"]
    undisturbed = [one for one in rows if one["condition"] == "undisturbed"]
    assert len(undisturbed) == 2 * 4 * 6 and any(one["reflects"] for one in undisturbed)


def test_the_saved_rollouts_alone_need_no_torch(tmp_path):
    folder = make_run(tmp_path / "seed0", model=None)
    script = (
        "import sys\n"
        "from visual_r1.cli import main\n"
        f"assert main(['probe', {str(folder.path)!r}, '--saved-only']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record = json.loads(folder.reflection.read_text())
    [effect] = [
        row
        for part in record["sections"]
        for row in part["rows"]
        if (row["measure"], row["condition"], row["step"], row["keywords"])
        == ("effect_within_prompt", "reflects", 0, "default")
    ]
    assert effect["estimate"] == 1 and effect["n"] == 4
    assert "new rollouts: --saved-only was asked for" in record["left_out"]


def test_new_rollouts_are_not_thrown_away(folder, record):
    with pytest.raises(ValueError, match="holds new rollouts, which would be lost"):
        probe(options(folder.path, saved_only=True))
    assert json.loads(folder.reflection.read_text()) == record


def test_what_is_not_there_is_left_out_and_said(tmp_path):
    folder = make_run(tmp_path / "seed0", model=None, overrides=["keywords.phrases=[zebra]", "keywords.name=mine"])
    shutil.rmtree(folder.completions)
    record = probe(options(folder.path, num_examples=2, num_generations=1), show=lambda line: None)
    said = "\n".join(record["left_out"])
    assert [model["name"] for model in record["models"]] == ["before"]
    assert "completions holds none" in said and "the run is not finished or trains nothing" in said
    assert "cut, before: none of 2 completions reflects in its thought" in said
    assert "image of another item, before: 2 items" in said
    names = {part["name"] for part in record["sections"]}
    assert {"rates", "forced", "early", "image"} <= names and "cut" not in names


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"rollout": "vllm_server"}, "cannot go on from a partly written completion: use --rollout transformers"),
        ({"rollout": "magic"}, "--rollout magic: unknown, expected one of"),
        ({"steps": (30,)}, r"--step 30: .* is not there, only steps \[\]"),
        ({"models": ("after",)}, "--model after: .* is not there"),
        ({"models": ("nowhere/at/all",)}, "nowhere/at/all"),
        ({"num_generations": 0}, "--generations 0"),
        ({"empty_phrase": " Wait. Yes, it is right."}, "--empty-phrase .* names a choice of spatial"),
    ],
)
def test_a_probe_that_cannot_be_made_says_so_before_anything_is_sampled(tmp_path, replaced, message):
    folder = make_run(tmp_path / "seed0", model=None)
    with pytest.raises(ValueError, match=message):
        probe(options(folder.path, **replaced))
    assert not folder.reflection.exists() and not folder.reflection_trials.exists()


def test_an_old_or_foreign_folder_is_one_line(tmp_path, capsys):
    assert main(["probe", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    folder = make_run(tmp_path / "seed0", model=None)
    config = yaml.safe_load(folder.config.read_text())
    del config["scale"]["probe_temperature"]
    folder.config.write_text(yaml.safe_dump(config))
    assert main(["probe", str(folder.path)]) == 2
    assert "has no key 'probe_temperature'; it was written by another version" in capsys.readouterr().err


def test_a_probe_that_is_cut_short_goes_on_from_what_it_has(tmp_path, monkeypatch):
    generate, num_calls, stops = TransformersSampler.generate, 0, ()

    def interrupted(sampler, *given, **more):
        nonlocal num_calls
        num_calls += 1
        if num_calls in stops:
            raise KeyboardInterrupt
        return generate(sampler, *given, **more)

    def run(folder):
        return probe(options(folder.path, num_examples=2, num_generations=2), show=shown.append)

    monkeypatch.setattr(TransformersSampler, "generate", interrupted)
    shown, whole, cut = [], make_run(tmp_path / "seed0"), make_run(tmp_path / "seed1")
    expected = run(whole)
    num_needed, num_calls = num_calls, 0
    stops = (2, num_needed - 2)  # within the first model, and in the second
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run(cut)
        assert cut.reflection_unfinished.exists() and not cut.reflection.exists()
    found = run(cut)
    assert num_calls == num_needed + len(stops) and not cut.reflection_unfinished.exists()
    assert ["an earlier probe was cut short" in line for line in shown[2:]] == [True, True, False, False]
    assert (found["sections"], found["left_out"]) == (expected["sections"], expected["left_out"])
    one, other = (pyarrow.parquet.read_table(folder.reflection_trials) for folder in (whole, cut))
    assert one == other


def test_items_that_are_not_the_runs_own_are_told(tmp_path):
    folder = make_run(tmp_path / "seed0", model=None)
    config = yaml.safe_load(folder.config.read_text())
    own = build(recorded(config).benchmark.examples).fingerprint()
    for fingerprint, are_others in ((own, False), ("of another version", True)):
        write_json(folder.provenance, {"data": {"benchmark": fingerprint}})
        record = probe(options(folder.path, num_examples=1, num_generations=1), show=lambda line: None)
        assert any("not those of the run" in line for line in record["left_out"]) == are_others


def test_a_second_probe_of_the_run_waits(folder, tmp_path):
    other = make_run(tmp_path / "seed0", model=None)
    journal = Journal(other.reflection_unfinished)
    with pytest.raises(OSError, match="is being written by another process"):
        probe(options(other.path, num_examples=2, num_generations=1))
    journal.close()


def test_other_weights_are_noticed(tmp_path):
    place = shutil.copytree(BASE, tmp_path / "model")
    source = ModelSource(name="x", path=str(place), style="base", dtype="float32")
    before = _weights(source)
    assert before == _weights(source)
    weights = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert before != _weights(source) and _weights(replace(source, path="somebody/of-the-hub")) == []


def test_another_seed_asks_other_items(folder, tmp_path):
    asked = []
    for seed in (0, 1):
        other = make_run(tmp_path / f"seed{seed}", model=None)
        probe(options(other.path, seed=seed, num_examples=2, num_generations=1), show=lambda line: None)
        asked.append({row["example_id"] for row in pyarrow.parquet.read_table(other.reflection_trials).to_pylist()})
    assert asked[0] != asked[1] and {len(one) for one in asked} == {2}


def test_a_checkpoint_and_a_folder_are_probed_beside(folder, tmp_path):
    other = make_run(tmp_path / "seed0", model=None)
    shutil.copytree(BASE, other.checkpoints / "checkpoint-10")
    asked = options(other.path, num_examples=2, num_generations=1, models=(str(BASE), str(BASE)), steps=(10, 10))
    record = probe(asked, show=lambda line: None)
    assert [(model["name"], model["step"]) for model in record["models"]] == [("step 10", 10), (str(BASE), None)]
