"""Told to stop, a run ends its step, saves at once and says how to go on; whatever else it does ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.engines.resuming.conftest import assert_same
from tests.engines.resuming.warm import ENVIRONMENT, ROOT
from visual_r1.preemption import EXIT_CODE, SIGNALS

SAVED = "visual_r1.manifest.seal"
"""By which a checkpoint becomes whole."""


def num_rows(folder):
    return folder.metrics.read_text().count("\n") if folder.metrics.exists() else 0


def checkpoints(folder):
    return sorted(path.name for path in folder.checkpoints.glob("*"))


def tell(process, number):
    """Sends a signal to a process that is held, which it finds as soon as it goes on."""
    process.send(number)
    process.send(signal.SIGCONT)


def said(text):
    """The lines that a run prints about its end."""
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith(("stopped", "the step"))]


# The checkpoint after which the signal comes, its step, and the step that is then saved: the one at hand, or the next
# that may be saved.
@pytest.mark.parametrize(("kind", "number", "row", "saved"), [("grpo", 3, 6, 7), ("iterated", 1, 2, 4)])
def test_a_training_saves_at_once_and_goes_on_to_the_same_numbers(place, alone, kind, number, row, saved):
    """The one of GRPO in its second epoch."""
    folder = place.folder(f"{kind}-told")
    process = place.hold(kind, folder.path.parent.name, at=f"after {SAVED} {number}")
    tell(process, signal.SIGUSR1)
    assert process.wait() == EXIT_CODE, process.log.read_text()
    assert checkpoints(folder) == [f"checkpoint-{row}", f"checkpoint-{saved}"]
    assert said(process.log.read_text()) == [
        f"stopped by SIGUSR1: saved runs/{kind}-told/seed0/checkpoints/checkpoint-{saved}; the same command goes on "
        "from there (exit code 75)"
    ]
    code, process = place.run(kind, folder.path.parent.name)
    assert (code, process.started_at()) == (0, [saved]), process.log.read_text()
    assert_same(folder, alone(kind)[0])


def test_a_signal_amid_saving_waits_for_it(place, alone):
    folder = place.folder("grpo-saving")
    process = place.hold("grpo", "grpo-saving", at=f"before {SAVED} 2")
    checkpoint = folder.checkpoints / "checkpoint-4"
    assert checkpoint.exists() and not (checkpoint / "manifest.json").exists()
    tell(process, signal.SIGTERM)
    assert process.wait() == EXIT_CODE, process.log.read_text()
    assert (checkpoint / "manifest.json").exists()
    assert place.run("grpo", "grpo-saving")[0] == 0
    assert_same(folder, alone("grpo")[0])


def test_past_the_grace_it_ends_without_a_new_checkpoint(place):
    folder, long = place.folder("grpo-grace"), ("scale.prompts_per_step=100", "scale.train_size=100")
    (process,) = place.start("grpo", "grpo-grace", "scale.grace_seconds=1", *long)
    assert process.wait_until(lambda: num_rows(folder) == 1)
    process.send(signal.SIGTERM)
    assert process.wait() == EXIT_CODE, process.log.read_text()
    assert checkpoints(folder) == []
    assert said(process.log.read_text())[0].startswith("the step did not end within 1 seconds of the signal")


def test_an_evaluation_ends_at_once_and_is_all_that_is_made_again(place, alone):
    folder = place.folder("grpo-evaluation")
    process = place.hold("grpo", "grpo-evaluation", at="after visual_r1.models.save_policy 1")
    tell(process, signal.SIGTERM)
    assert process.wait() == EXIT_CODE, process.log.read_text()
    assert said(process.log.read_text()) == ["stopped by SIGTERM: the same command goes on"]
    assert not folder.evaluation.exists()
    code, process = place.run("grpo", "grpo-evaluation")
    assert (code, process.started_at()) == (0, [])
    assert_same(folder, alone("grpo")[0])


def test_ctrl_c_leaves_a_run_that_goes_on(place, alone):
    folder = place.folder("sft-interrupted")
    process = place.hold("sft", "sft-interrupted", at=f"before {SAVED} 2")
    tell(process, signal.SIGINT)
    assert process.wait() == 99  # an exception, as everywhere in Python
    code, process = place.run("sft", "sft-interrupted")
    assert code == 0 and process.started_at() == [2]
    assert_same(folder, alone("sft")[0])


# What follows goes through the command and its launcher, which start slowly: two processes that must save together.


@pytest.mark.parametrize("number", [SIGNALS[0], SIGNALS[1]])
def test_two_processes_that_are_told_by_their_launcher_save_one_checkpoint(place, alone, number):
    folder = place.folder(f"ddp-{number.name}")
    command = [sys.executable, str(ROOT / "run.py"), *place.overrides("ddp", folder.path.parent.name)]
    environment = {**os.environ, **ENVIRONMENT}
    process = subprocess.Popen(
        command, cwd=place.path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and num_rows(folder) < 4:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == EXIT_CODE, errors
    last = checkpoints(folder)[-1]
    assert said(errors) == [
        f"stopped by {number.name}: saved runs/ddp-{number.name}/seed0/checkpoints/{last}; the same command goes on "
        "from there (exit code 75)"
    ]
    processes = place.start("ddp", folder.path.parent.name)
    assert [one.wait() for one in processes] == [0, 0], processes[0].log.read_text()
    assert processes[0].started_at() == [int(last.rpartition("-")[2])]
    assert_same(folder, alone("ddp")[0])
