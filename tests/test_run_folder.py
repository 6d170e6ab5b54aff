"""The run folder: a finished run is safe, an unfinished one resumes, and an error leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visual_r1 import manifest
from visual_r1.files import remove_partial
from visual_r1.run_folder import RunFinishedError, RunFolder, RunFolderError, remove_checkpoint

CONFIG = {"name": "grpo", "seed": 0, "method": {"trl": {"beta": 0.04, "betas": (0.9, 0.999)}}, "model": "base"}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "grpo" / "seed0")


def begin(folder, config=CONFIG, *, num_steps=3):
    """Leaves an unfinished run, as a kill would."""
    with folder.open(config, {"started": "now"}):
        folder.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(num_steps)))


def test_a_new_run_records_its_config_and_provenance(folder):
    with folder.open(CONFIG, {"started": "now"}) as is_resumed:
        assert not is_resumed
        assert folder.read_config() == {**CONFIG, "method": {"trl": {"beta": 0.04, "betas": [0.9, 0.999]}}}
        assert json.loads(folder.provenance.read_text())["started"] == "now"
        assert folder.is_begun and not folder.is_finished


def test_a_finished_run_is_never_overwritten(folder):
    begin(folder)
    folder.summary.write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    with pytest.raises(RunFinishedError, match=r"seed0 holds a finished run.*name=.*seed="), folder.open(CONFIG, {}):
        pass
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_an_unfinished_run_resumes_and_keeps_both_records(folder):
    begin(folder)
    with folder.open(CONFIG, {"started": "later"}) as is_resumed:
        assert is_resumed
    record = json.loads(folder.provenance.read_text())
    assert record["started"] == "now" and [resume["started"] for resume in record["resumes"]] == ["later"]


def test_another_config_is_refused_naming_the_keys(folder):
    begin(folder)
    other = {**CONFIG, "model": "instruct", "method": {"trl": {"beta": 0.0, "betas": (0.9, 0.999)}}, "extra": 1}
    with pytest.raises(RunFolderError, match=r"another configuration \(extra, method\.trl\.beta, model\)"):
        folder.check(other)


def test_a_setting_that_the_run_did_not_know_and_that_is_off_makes_no_other_run(folder):
    begin(folder)
    folder.check({**CONFIG, "extra": None})
    with pytest.raises(RunFolderError, match=r"another configuration \(extra\)"):
        folder.check({**CONFIG, "extra": False})


def test_a_resumed_run_may_find_its_server_elsewhere(folder):
    def served(**engine):
        rendezvous = engine.pop("rendezvous", "a:1")
        return {**CONFIG, "rollout": {"engine": engine}, "distributed": {"rendezvous": rendezvous}}

    with folder.open(served(url="http://a:1", kv_cache_gib=None, bf16=True), {}):
        folder.metrics.write_text('{"step": 0}\n')
    folder.check(served(url="http://b:2", kv_cache_gib=2.0, bf16=True, rendezvous="b:2"))
    with pytest.raises(RunFolderError, match=r"another configuration \(rollout\.engine\.bf16\)"):
        folder.check(served(url="http://b:2", kv_cache_gib=2.0, bf16=False))


def test_a_run_that_was_moved_is_the_same_run(folder):
    with folder.open({**CONFIG, "runs_dir": "runs"}, {}):
        folder.metrics.write_text('{"step": 0}\n')
    folder.check({**CONFIG, "runs_dir": "/elsewhere/runs"})


def test_a_check_changes_nothing_on_disk(folder, tmp_path):
    folder.check(CONFIG)
    assert not list(tmp_path.iterdir())


def test_an_error_before_any_result_leaves_nothing_behind(folder, tmp_path):
    with pytest.raises(RuntimeError), folder.open(CONFIG, {}):
        (folder.path / "wandb").mkdir()
        folder.metrics.touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_error_after_a_result_keeps_it(folder):
    with pytest.raises(RuntimeError), folder.open(CONFIG, {}):
        folder.metrics.write_text('{"step": 0}\n')
        raise RuntimeError
    assert folder.is_begun


def test_an_error_keeps_the_neighbours(folder):
    neighbour = folder.path.parent / "seed1" / "summary.json"
    neighbour.parent.mkdir(parents=True)
    neighbour.touch()
    with pytest.raises(RuntimeError), folder.open(CONFIG, {}):
        raise RuntimeError
    assert neighbour.exists() and not folder.path.exists()


def test_a_run_that_begins_beside_a_failing_one_keeps_its_place(folder, monkeypatch):
    """Both are of one name, and its folder is empty for a moment."""
    beside, rmdir = folder.path.with_name("seed1"), Path.rmdir

    def begin_first(path):
        if path == beside.parent:
            beside.mkdir()
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", begin_first)
    with pytest.raises(ValueError, match="no such model"), folder.open(CONFIG, {}):
        raise ValueError("no such model")
    assert list(beside.parent.iterdir()) == [beside]


def test_a_check_beside_a_run_that_tidies_up_finds_nothing_wrong(folder, monkeypatch):
    begin(folder)
    monkeypatch.setattr(Path, "touch", lambda path: path.write_text("") or remove_partial(path.parent))
    folder.check(CONFIG)


def test_a_folder_of_something_else_is_refused(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not a run"):
        folder.check(CONFIG)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_unwritable_place_is_refused_in_one_line(tmp_path, depth):
    # A file where a folder should be: unlike a mode, root respects it too.
    (tmp_path / "runs").touch()
    with pytest.raises(RunFolderError, match="cannot write the run folder") as error:
        RunFolder(tmp_path.joinpath("runs", *"ab"[:depth])).check(CONFIG)
    assert "\n" not in str(error.value)


def test_two_processes_cannot_write_one_run(folder):
    # The lock belongs to an open file, so a second opening within one process stands for a second process.
    begin(folder)
    with (
        folder.open(CONFIG, {}),
        pytest.raises(RunFolderError, match="another process"),
        folder.open(CONFIG, {}),
    ):
        pass
    with folder.open(CONFIG, {}) as is_resumed:
        assert is_resumed
    assert not list(folder.path.glob(".*"))


def test_a_lock_on_a_removed_file_counts_for_nothing(folder, monkeypatch):
    begin(folder)

    def lock_while_another_process_ends(*_arguments):
        (folder.path / ".lock").unlink()

    monkeypatch.setattr("fcntl.flock", lock_while_another_process_ends)
    with pytest.raises(RunFolderError, match="another process"), folder.open(CONFIG, {}):
        pass


def test_a_file_system_without_locks_is_named(folder, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(RunFolderError, match=r"seed0.*Function not implemented.*runs_dir"), folder.open(CONFIG, {}):
        pass


def test_a_killed_process_holds_no_lock(folder):
    script = (
        "import os, sys, pathlib; from visual_r1.run_folder import RunFolder\n"
        f"with RunFolder(pathlib.Path(sys.argv[1])).open({CONFIG!r}, {{}}): os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(folder.path)], check=False).returncode == -9
    with folder.open(CONFIG, {}) as is_resumed:
        assert is_resumed


def test_truncating_forgets_later_steps_and_a_torn_line(folder):
    begin(folder)
    folder.completions.mkdir()
    for step in (0, 2):
        folder.completions_at(step).touch()
    with folder.metrics.open("a") as file:
        file.write('{"step": 3, "rew')
    folder.truncate_metrics(1)
    assert folder.metrics.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert list(folder.completions.iterdir()) == [folder.completions_at(0)]


def test_a_broken_line_in_the_middle_is_an_error(folder):
    begin(folder)
    folder.metrics.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        folder.read_metrics()


def save(folder, step, *, is_whole=True):
    """Leaves a checkpoint, or as much of one as a kill would."""
    checkpoint = folder.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "trainer_state.json"):
        (checkpoint / name).write_text(f"{name} of {step}")
    if is_whole:
        manifest.seal(checkpoint, manifest.describe(checkpoint, manifest.list_files(checkpoint)))
    return checkpoint


def names(folder):
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_the_latest_checkpoint_is_the_newest_that_was_written_to_its_end(folder):
    assert folder.latest_checkpoint() is None
    for step, is_whole in ((9, True), (10, True), (20, False)):
        save(folder, step, is_whole=is_whole)
    (folder.checkpoints / "checkpoint-30-of-mine").mkdir()
    assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-10"


def test_what_a_kill_has_torn_is_cleared_away_when_the_run_goes_on(folder, caplog):
    begin(folder)
    save(folder, 2)
    save(folder, 4, is_whole=False)
    (folder.path / ".partial-summary-abc.json").touch()
    folder.completions.mkdir()
    (folder.completions / ".partial-step_00003-abc.parquet").touch()
    with folder.open(CONFIG, {}):
        assert names(folder) == ["checkpoint-2"]
        assert not list(folder.path.rglob(".partial-*"))
    [line] = caplog.messages
    assert "checkpoint-4 was not written to its end: going on from checkpoint-2" in line and "\n" not in line


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(folder, caplog):
    begin(folder)
    save(folder, 2)
    (save(folder, 4) / "model.safetensors").write_text("model.safetensors of 5")
    with folder.open(CONFIG, {}):
        assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-2"
        assert names(folder) == ["checkpoint-2", "damaged-4"]
    [line] = caplog.messages
    assert "checkpoint-4 is damaged (model.safetensors is not as it was written" in line


def test_without_a_whole_checkpoint_the_run_says_that_it_starts_over(folder, caplog):
    stage = RunFolder(folder.path / "stages" / "sft")
    begin(folder)
    save(stage, 2, is_whole=False)
    with folder.open(CONFIG, {}):
        assert stage.latest_checkpoint() is None
    assert "no whole checkpoint is left, so training starts over" in caplog.messages[0]


def test_a_run_without_damage_says_nothing(folder, caplog):
    begin(folder)
    save(folder, 2)
    with folder.open(CONFIG, {}):
        assert names(folder) == ["checkpoint-2"]
    assert not caplog.messages


def test_a_checkpoint_whose_removal_is_cut_short_counts_no_more(folder, monkeypatch):
    save(folder, 2)
    monkeypatch.setattr("shutil.rmtree", lambda *_arguments, **_keywords: None)
    remove_checkpoint(folder.checkpoints / "checkpoint-2")
    assert folder.latest_checkpoint() is None


def test_reading_something_that_is_no_run_says_so(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder(tmp_path).read_config()
