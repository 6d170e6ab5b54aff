"""A disk that is full stops a run with one line, keeps its last good checkpoint, and is all that stops it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress

import pytest

from tests.engines.resuming.conftest import assert_same
from tests.tracking.test_weights_and_biases import train
from visual_r1.run_folder import RunFolder, whole_checkpoints
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker


@contextmanager
def small_disk(path, *, megabytes):
    """A file system of its own size."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{done.stderr.strip()}; this test needs root and the right to mount", False)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path):
    """Takes all the room that a disk has left."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):  # W&B's process may write at the same time
        while True:
            file.write(bytes(2**20))
    return ballast


def error_of(process):
    """The one line by which a run ends."""
    [line] = [line for line in process.log.read_text().replace("\r", "\n").splitlines() if line.startswith("error")]
    return line


# A checkpoint of nano takes 17 MB, its model 6: on one disk a single checkpoint fits, on the other all but the model.
SIZES = {30: ("checkpoints/checkpoint-4", ["checkpoint-2"]), 38: ("model", ["checkpoint-6", "checkpoint-8"])}


@pytest.mark.parametrize("megabytes", SIZES)
def test_a_run_that_does_not_fit_goes_on_from_what_it_has_saved_when_there_is_room(place, alone, megabytes):
    what, kept = SIZES[megabytes]
    with small_disk(place.path / f"disk{megabytes}", megabytes=megabytes) as disk:
        folder = RunFolder(disk / "full" / "seed0")
        code, process = place.run("sft", "full", f"runs_dir={disk}")
        assert code == 1, process.log.read_text()
        was_warned = f"{folder.path}: " in process.log.read_text() and "the run will stop" in process.log.read_text()
        assert was_warned == (megabytes == 30)  # the other is short of less than the estimate leaves out
        line = error_of(process)
        assert line.startswith(f"error: cannot write {folder.path / what}: ") and " MB free there): make room" in line
        assert [path.name for path in whole_checkpoints(folder.checkpoints)] == kept
        assert sorted(path.name for path in folder.checkpoints.iterdir()) == kept  # nothing of the one that did not fit
        assert not list(folder.path.glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        code, process = place.run("sft", "full", f"runs_dir={disk}")
        assert code == 0, process.log.read_text()
        assert_same(folder, alone("sft")[0])


@pytest.mark.parametrize("tracker", ["none", "offline"])
def test_a_disk_that_fills_up_in_between_costs_no_more_than_the_steps_since(place, alone, tracker):
    """Somebody else's files: the record of a step is what cannot be written."""
    with small_disk(place.path / f"disk-{tracker}", megabytes=200) as disk:
        folder = RunFolder(disk / "filled" / "seed0")
        chosen = (f"runs_dir={disk}", f"tracker={tracker}")
        process = place.hold("grpo", "filled", *chosen, at="after visual_r1.manifest.seal 2")
        ballast = fill(disk)
        process.send(signal.SIGCONT)
        assert process.wait() == 1, process.log.read_text()
        line = error_of(process)
        assert line.startswith(f"error: cannot write {folder.path}") and "No space left on device" in line
        ballast.unlink()
        code, process = place.run("grpo", "filled", *chosen)
        assert (code, process.started_at()) == (0, [4]), process.log.read_text()
        shutil.rmtree(folder.path / "wandb", ignore_errors=True)
        assert_same(folder, alone("grpo")[0])


def test_what_cannot_fit_is_not_begun(place):
    with small_disk(place.path / "disk10", megabytes=10) as disk:
        code, process = place.run("sft", "tiny", f"runs_dir={disk}")
        assert code == 1, process.log.read_text()
        assert "MB free, but 2 checkpoints and the model take at least 17" in error_of(process)
        assert not process.started_at() and not list(disk.iterdir())


def test_a_full_disk_of_wandb_alone_stops_nothing(tmp_path, caplog):
    folder = RunFolder(tmp_path / "seed0")
    with small_disk(folder.path / "wandb", megabytes=1) as disk:
        with FanOut([JsonlTracker(folder), WandbTracker(folder, config={}, timeout_seconds=10.0)]) as tracker:
            train(tracker, range(2))
            fill(disk)
            train(tracker, range(2, 300))
        assert len(folder.read_metrics()) == 300
        [warning] = [record.message for record in caplog.records if record.name.startswith("visual_r1")]
        assert "No space left on device" in warning and "the run goes on without it" in warning
