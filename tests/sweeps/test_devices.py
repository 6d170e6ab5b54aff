"""GPUs are leased: no two jobs share one, and a job that dies gives its own back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from visual_r1.sweeps import devices
from visual_r1.sweeps.devices import VARIABLE, lease, visible


def test_gpus_are_those_that_the_variable_leaves(monkeypatch):
    monkeypatch.setenv(VARIABLE, "3, 5")
    assert visible() == ("3", "5")
    for hidden in ("", "-1"):
        monkeypatch.setenv(VARIABLE, hidden)
        assert visible() == ()


def test_gpus_are_those_that_the_driver_lists(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible() == ()  # no driver
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert visible() == ("0", "1")
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert visible() == ()


def never():
    return False


def test_no_two_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    four = ("0", "1", "2", "3")
    with lease(four, 2, folder=tmp_path, is_stopped=never) as first:
        assert first is not None and first.devices == ("0", "1")
        assert first.environment == {VARIABLE: "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        with lease(four, 1, folder=tmp_path, is_stopped=never) as second:
            assert second is not None and second.devices == ("2",)
            # One is free and two are wanted: it takes none, so that nobody waits for the one that it would hold.
            with lease(four, 2, folder=tmp_path, is_stopped=lambda: True) as third:
                assert third is None
            with lease(four, 1, folder=tmp_path, is_stopped=never) as fourth:
                assert fourth is not None and fourth.devices == ("3",)
    with lease(four, 4, folder=tmp_path, is_stopped=never) as all_again:
        assert all_again is not None and all_again.devices == four


@pytest.mark.parametrize(("names", "count"), [(("0", "1"), 0), ((), 1), (("0",), 2)])
def test_where_there_are_not_enough_nothing_is_held(tmp_path, names, count):
    """The job itself says what it lacks."""
    with lease(names, count, folder=tmp_path / "locks", is_stopped=never) as none:
        assert none is not None and none.devices == () and none.environment == {}
    assert not (tmp_path / "locks").exists()


def test_numbers_that_somebody_has_chosen_are_counted_as_he_counts(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "5,3")
    with lease(visible(), 1, folder=tmp_path, is_stopped=never) as held:
        assert held is not None and held.environment == {VARIABLE: "5"}


def test_two_jobs_of_slurm_on_a_machine_both_call_their_gpu_0(monkeypatch):
    folders = set()
    for number in ("17", "18"):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        folders.add(devices.default_folder())
    assert len(folders) == 2


HOLDER = """
import sys, time
from pathlib import Path
from visual_r1.sweeps.devices import lease

with lease(("0",), 1, folder=Path(sys.argv[1]), is_stopped=lambda: False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_job_gives_its_gpu_back(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_POLL_SECONDS", 0.01)
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with lease(("0",), 1, folder=tmp_path, is_stopped=lambda: True) as taken:
            assert taken is None
        holder.send_signal(signal.SIGKILL)
        with lease(("0",), 1, folder=tmp_path, is_stopped=never) as free:
            assert free is not None and free.devices == ("0",)


def test_a_gpu_is_held_until_the_last_process_of_the_job_has_ended(tmp_path):
    with lease(("0",), 1, folder=tmp_path, is_stopped=never) as held:
        assert held is not None
        script = "import time; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", script], pass_fds=held.locks)
    try:
        with lease(("0",), 1, folder=tmp_path, is_stopped=lambda: True) as taken:
            assert taken is None  # although the block above has ended
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 60
    with lease(("0",), 1, folder=tmp_path, is_stopped=lambda: time.monotonic() > deadline) as free:
        assert free is not None and free.devices == ("0",)
