"""Numbers arrive in metrics.jsonl whatever happens, and rollouts in the file of their step."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest

from tests.tracking.rows import TRAINED, rollout_row
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, write_rollouts


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
