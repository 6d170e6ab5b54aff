"""Numbers arrive in metrics.jsonl whatever happens, and in a W&B file that reads back; W&B stops no run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import types

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from visual_r1.files import write_json
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker, read_offline_wandb, write_rollouts


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "grpo" / "seed0")
    folder.path.mkdir(parents=True)
    return folder


def rollout_row(*, completion="Wait. </think> <answer>(B)</answer>", **extra):
    return {
        "example_id": "spatial/train/17",
        "category": "Depth",
        "images": (Image.new("RGB", (28, 28), "red"),),
        "question": "Which is closer?",
        "completion": completion,
        "solution": "B",
        "choice": "B",
        "correct": True,
        "num_tokens": 7,
        "is_truncated": False,
        "keyword_hits": ["wait"],
        **extra,
    }


TRAINED = {"scores": {"format": 0.0, "accuracy": 1.0}, "advantage": 0.5, "group": 3}


class TestJsonl:
    def test_calls_of_one_step_are_one_line_with_sorted_keys(self, folder):
        with JsonlTracker(folder) as tracker:
            tracker.log({"reward": 0.5}, step=0)
            tracker.log({"kl": np.float32(0.25), "completions/count": 8}, step=0)
            tracker.log({"reward": 0.75}, step=1)
        assert folder.metrics.read_text() == (
            '{"step": 0, "completions/count": 8, "kl": 0.25, "reward": 0.5}\n{"step": 1, "reward": 0.75}\n'
        )

    def test_what_was_not_measured_is_null(self, folder):
        with JsonlTracker(folder) as tracker:
            tracker.log({"a": None, "b": float("nan"), "c": float("inf")}, step=0)
        assert folder.read_metrics() == [{"step": 0, "a": None, "b": None, "c": None}]

    def test_a_shorter_second_value_leaves_no_remains(self, folder):
        with JsonlTracker(folder) as tracker:
            tracker.log({"reward": 0.123456789}, step=0)
            tracker.log({"reward": 1.0}, step=0)
        assert folder.metrics.read_text() == '{"step": 0, "reward": 1.0}\n'

    def test_a_killed_process_loses_nothing_it_has_logged(self, folder):
        script = (
            "import os, sys, pathlib\n"
            "from visual_r1.run_folder import RunFolder\n"
            "from visual_r1.tracking import JsonlTracker\n"
            "tracker = JsonlTracker(RunFolder(pathlib.Path(sys.argv[1])))\n"
            "for step in range(3): tracker.log({'reward': step / 2}, step=step)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        assert subprocess.run([sys.executable, "-c", script, str(folder.path)], check=False).returncode == -9
        assert folder.read_metrics() == [{"step": step, "reward": step / 2} for step in range(3)]

    def test_a_resumed_run_has_the_lines_of_an_uninterrupted_one(self, folder, tmp_path):
        def run(tracker, steps):
            for step in steps:
                tracker.log({"reward": step / 7}, step=step)
                tracker.log({"probe/accuracy": 1 / (step + 1)}, step=step)

        with JsonlTracker(folder) as tracker:
            run(tracker, range(5))
        uninterrupted = folder.metrics.read_bytes()

        folder.metrics.unlink()
        with JsonlTracker(folder) as tracker:
            run(tracker, range(4))
            tracker.log({"reward": 0.0}, step=4)
        with folder.metrics.open("a") as file:
            file.write('{"step": 5, "rew')
        folder.truncate_metrics(2)  # the checkpoint is of step 2
        with JsonlTracker(folder) as tracker:
            tracker.log({"probe/accuracy": 1 / 3}, step=2)  # what follows a checkpoint within its step comes twice
            run(tracker, range(3, 5))
        assert folder.metrics.read_bytes() == uninterrupted

    def test_a_torn_last_line_does_not_swallow_the_next(self, folder):
        folder.metrics.write_text('{"step": 0, "reward": 1.0}\n{"step": 1, "rew')
        with JsonlTracker(folder) as tracker:
            tracker.log({"reward": 2.0}, step=1)
        assert folder.read_metrics() == [{"step": 0, "reward": 1.0}, {"step": 1, "reward": 2.0}]

    def test_steps_never_go_back(self, folder):
        with JsonlTracker(folder) as tracker:
            tracker.log({"reward": 1.0}, step=3)
            with pytest.raises(ValueError, match="step 2 was logged after step 3"):
                tracker.log({"reward": 1.0}, step=2)

    def test_a_value_that_is_no_number_is_named(self, folder):
        with JsonlTracker(folder) as tracker, pytest.raises(TypeError, match="probe/note is 'high'"):
            tracker.log({"probe/note": "high"}, step=0)  # ty: ignore[invalid-argument-type]

    def test_rollouts_go_to_the_file_of_their_step(self, folder):
        with JsonlTracker(folder) as tracker:
            tracker.log_rollouts([rollout_row(**TRAINED), rollout_row(**TRAINED)], step=40)
            tracker.log_rollouts([rollout_row(completion="(A)")], step=40, name="probe")
            tracker.log_rollouts([rollout_row(**TRAINED)], step=40)  # as a resumed run does
        table = pyarrow.parquet.read_table(folder.path / "completions" / "step_00040.parquet")
        probe, train = table.to_pylist()
        assert (train["source"], train["example_id"], train["group"]) == ("train", "spatial/train/17", 3)
        assert (train["score/accuracy"], train["score/format"], train["advantage"]) == (1.0, 0.0, 0.5)
        assert (probe["source"], probe["completion"], probe["keyword_hits"]) == ("probe", "(A)", ["wait"])
        assert probe["advantage"] is None and probe["score/accuracy"] is None
        assert "images" not in table.column_names


def test_no_rollouts_is_a_file_without_rows(tmp_path):
    write_rollouts(tmp_path / "step_00000.parquet", [], name="train")
    assert pyarrow.parquet.read_table(tmp_path / "step_00000.parquet").num_rows == 0


class TestWandb:
    def test_an_offline_run_reads_back_as_metrics_jsonl(self, folder):
        config = {"name": "grpo", "seed": 0, "method": {"trl": {"beta": 0.04}}}
        wandb = WandbTracker(folder, config=config, group="grpo", tags=["laptop"])
        with FanOut([JsonlTracker(folder), wandb]) as tracker:
            for step in range(4):
                tracker.log({"reward": step / 3, "kl": float("nan")}, step=step)
                if step % 2 == 0:
                    tracker.log({"probe/accuracy": 0.25 * step}, step=step)
                    tracker.log_rollouts([rollout_row(**TRAINED), rollout_row(completion="(A)")], step=step)

        (file,) = folder.path.glob("wandb/offline-run-*/*.wandb")
        record = read_offline_wandb(file)
        assert record.is_complete and {key: record.config[key] for key in config} == config
        assert (record.name, record.group, record.tags) == ("grpo/seed0", "grpo", ("laptop",))
        rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in record.history]
        tables = [row.pop("rollouts/train", None) for row in rows]
        assert rows == [{k: v for k, v in row.items() if v is not None} for row in folder.read_metrics()]
        assert [table is not None for table in tables] == [True, False, True, False]

        table = json.loads((file.parent / "files" / tables[0]["path"]).read_text())
        cells = dict(zip(table["columns"], table["data"][0], strict=True))
        assert cells["example"] == "spatial/train/17" and cells["score/accuracy"] == 1.0
        staged = folder.path.glob("wandb/artifacts/staging/tmp*")
        assert {Image.open(file).size for file in staged if file.read_bytes()[:4] == b"\x89PNG"} == {(28, 28)}

        # A killed process leaves a torn tail; every whole row before it still reads.
        torn = folder.path / "torn.wandb"
        whole = file.read_bytes()
        lengths = []
        for size in range(8, len(whole), 199):
            torn.write_bytes(whole[:size])
            part = read_offline_wandb(torn)
            assert part.history == record.history[: len(part.history)]
            lengths.append(len(part.history))
        assert lengths == sorted(lengths) and {0, 1, 2, 3} <= set(lengths)

    def test_a_resumed_run_keeps_its_id_and_a_new_one_of_its_name_does_not(self, folder, monkeypatch):
        ids = []
        fake = types.SimpleNamespace(init=lambda **options: ids.append(options["id"]), Settings=lambda **_: None)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        for started in ("first", "first", "second"):
            write_json(folder.provenance, {"started": started})
            WandbTracker(folder, config={}).finish()
        assert ids[0] == ids[1] != ids[2]

    def test_a_run_without_wandb_goes_on_with_one_warning(self, folder, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of a missing package meets
        with caplog.at_level(logging.WARNING), WandbTracker(folder, config={}) as tracker:
            tracker.log({"reward": 1.0}, step=0)
            tracker.log_rollouts([rollout_row()], step=0)
        assert len(caplog.records) == 1 and "the run goes on without it" in caplog.text

    def test_a_server_that_fails_late_stops_nothing(self, folder, monkeypatch, caplog):
        class FailingRun:
            num_logs = 0

            def define_metric(self, *_args, **_kwargs):
                pass

            def log(self, _row):
                self.num_logs += 1
                raise ConnectionError("server is gone\nwith details")

            def finish(self):
                raise ConnectionError("server is gone")

        run = FailingRun()
        fake = types.SimpleNamespace(init=lambda **_: run, Settings=lambda **_: None)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        with caplog.at_level(logging.WARNING), WandbTracker(folder, config={}) as tracker:
            for step in range(3):
                tracker.log({"reward": 1.0}, step=step)
        assert run.num_logs == 1
        (warning,) = caplog.messages
        assert warning == "W&B could not log (server is gone); the run goes on without it"

    def test_online_without_a_key_warns_and_does_not_ask(self, folder, monkeypatch, caplog):
        fake = types.SimpleNamespace(login=lambda **options: bool(options["prompt"]))
        monkeypatch.setitem(sys.modules, "wandb", fake)
        with caplog.at_level(logging.WARNING), WandbTracker(folder, config={}, mode="online"):
            pass
        assert "no API key" in caplog.text

    def test_a_file_of_another_kind_is_refused(self, tmp_path):
        (tmp_path / "x.wandb").write_bytes(b"not wandb")
        with pytest.raises(ValueError, match="not a wandb file"):
            read_offline_wandb(tmp_path / "x.wandb")


def test_every_tracker_is_finished_even_if_one_fails(folder):
    class Failing(JsonlTracker):
        def finish(self):
            super().finish()
            raise OSError("disk full")

    class Counting(JsonlTracker):
        is_finished = False

        def finish(self):
            super().finish()
            self.is_finished = True

    other = RunFolder(folder.path.parent / "seed1")
    other.path.mkdir()
    last = Counting(other)
    with pytest.raises(OSError, match="disk full"), FanOut([Failing(folder), last]):
        pass
    assert last.is_finished
