"""`visual-r1 track`: a run that was not shown, or not wholly, is shown from its record."""

from __future__ import annotations

import sys

import pytest

from tests.tracking.rows import TRAINED, rollout_row
from visual_r1.cli import main
from visual_r1.files import write_json, write_text
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import JsonlTracker, WandbTracker, read_offline_wandb

CONFIG = "".join(f"{group}: {{name: my_{group}}}\n" for group in ("scale", "model", "method", "reward"))


@pytest.fixture
def untracked(folder):
    """A finished run that had no tracker."""
    write_text(folder.config, CONFIG)
    write_json(folder.provenance, {"started": "today"})
    with JsonlTracker(folder) as tracker:
        for step in range(3):
            tracker.log({"reward": step / 3}, step=step)
        tracker.log_rollouts([rollout_row(**TRAINED)], step=2)
    write_json(folder.summary, {"chance": 0.25})
    return folder


def test_a_run_is_shown_in_wandb(untracked, capsys):
    for _ in range(2):  # again, after a failure: one file
        assert main(["track", str(untracked.path), "--project", "mine"]) == 0
    assert f"{untracked.path}: shown in W&B" in capsys.readouterr().out
    [file] = untracked.path.glob("wandb/offline-run-*/*.wandb")
    record = read_offline_wandb(file)
    assert record.is_complete and [row["reward"] for row in record.history] == [0, 1 / 3, 2 / 3]
    assert (record.group, record.job_type) == ("grpo", "my_method") and "my_reward" in record.tags
    assert record.project == "mine" and record.summary["benchmark/chance"] == 0.25
    assert "rollouts/train" in record.history[2]
    assert not (untracked.path / ".lock").exists()


def test_a_run_of_another_version_is_shown_by_what_it_names(untracked):
    write_text(untracked.config, "model: {name: my_model}\n")
    assert main(["track", str(untracked.path)]) == 0
    [file] = untracked.path.glob("wandb/offline-run-*/*.wandb")
    record = read_offline_wandb(file)
    assert (record.group, record.job_type, record.tags) == ("grpo", "", ("my_model",))


def test_a_run_is_waited_for_while_its_rows_are_shown(untracked, monkeypatch):
    waits = []
    finish = WandbTracker.finish
    monkeypatch.setattr(
        WandbTracker, "finish", lambda self, **how: (waits.append((how, self._timeout_seconds)), finish(self))
    )
    assert main(["track", str(untracked.path), "--timeout", "77"]) == 0
    assert waits == [({"is_patient": True}, 77)]


def test_a_run_is_shown_in_tensorboard(untracked):
    assert main(["track", str(untracked.path), "--tracker", "tensorboard"]) == 0
    assert len(list(untracked.tensorboard.iterdir())) == 1


def test_what_cannot_be_shown_is_a_failure(untracked, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["track", str(untracked.path)]) == 1
    assert "shown in" not in capsys.readouterr().out


def test_what_is_no_run_or_is_being_written_is_refused(untracked, tmp_path, capsys):
    assert main(["track", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["track", str(untracked.path), "--tracker", "none"]) == 2
    assert "--tracker none: shows nothing" in capsys.readouterr().err
    with RunFolder(untracked.path).held():
        assert main(["track", str(untracked.path)]) == 2
    assert "is being written by another process" in capsys.readouterr().err
