"""Killed at any moment and typed again, a run ends with the numbers of one that was let alone.

The moments are random: a failure names the seed, and ``KILL_SEED=<seed>`` repeats them. A moment is a share of the
processor's time that an uninterrupted run takes, so a busy machine is killed at about the same place.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.engines.resuming.conftest import KINDS, SAVE_EVERY, assert_same
from visual_r1.methods.chain import last_kept_step
from visual_r1.models import saved_steps
from visual_r1.run_folder import whole_checkpoints

KILLS = {"grpo": 3, "iterated": 2, "resampling": 3, "sft": 4, "lora": 3, "chain": 3, "ddp": 2, "ddp_sft": 1}


def test_there_are_twenty_kills_of_every_kind():
    assert sum(KILLS.values()) >= 20 and KILLS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_random_moments_ends_with_the_same_numbers(place, alone, kind):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 1_000_000))
    print(f"\n{kind}: KILL_SEED={seed}")
    chance = random.Random(f"{seed} {kind}")
    expected, seconds = alone(kind)
    num_killed = num_runs = 0
    while num_killed < KILLS[kind]:
        num_runs += 1
        name = f"{kind}-{num_runs}"
        most = min(2, KILLS[kind] - num_killed)  # more would mostly meet a run that has only its evaluation left
        num_killed += kill_and_go_on(place, kind, name, chance, most=most, seconds=seconds)
        assert_same(place.folder(name), expected)


def kill_and_go_on(place, kind, name, chance, *, most, seconds):
    """Kills a run at most so often, starting it again each time, and lets it end; how often it was killed."""
    folder, num_killed, kept = place.folder(name), 0, 0
    while True:
        processes = place.start(kind, name)
        victim = chance.choice(processes)
        # A resumed run has less to do, and is still to be killed before it is through.
        moment = chance.uniform(0.1, 1.0) * seconds * (1 - 0.5 * kept / 8)
        is_killed = num_killed < most and victim.wait_until(lambda: victim.cpu_seconds() >= moment)  # noqa: B023
        if is_killed:
            stop(processes, victim)
        codes = [one.wait() for one in processes]
        began = processes[0].started_at()
        assert kind == "chain" or began in ([], [kept])  # on from the last whole checkpoint, or not trained again
        if not is_killed:
            assert codes == [0] * len(processes), processes[0].log.read_text()
            return num_killed
        num_killed += 1
        rows = folder.read_metrics()
        last, kept = rows[-1]["step"] if rows else 0, kept_step(folder)
        torn = [one.name for one in folder.path.rglob("checkpoint-*") if one not in whole_checkpoints(one.parent)]
        done = [one.name for one in (folder.model, folder.evaluation) if one.exists()]
        print(f"{kind}: killed at {moment:.2f} of {seconds:.2f} s, row {last}, kept {kept}, has {done}, torn {torn}")
        assert 0 <= last - kept <= SAVE_EVERY


def kept_step(folder):
    """The step that a run goes on from."""
    return saved_steps(folder.model) or max(last_kept_step(folder), 0)


def stop(processes, victim):
    """Kills one process outright, and stops the others as a launcher does that has lost it."""
    victim.send(signal.SIGKILL)
    for one in processes:
        if one is not victim:
            one.send(signal.SIGTERM)
            until = time.monotonic() + 5
            one.wait_until(lambda: time.monotonic() > until)  # noqa: B023
            one.send(signal.SIGKILL)


# In this order in one run, each when the one before it has been survived.
POINTS = {
    "before transformers.trainer.Trainer.save_model 1": 0,
    "after transformers.trainer.Trainer.save_model 1": 0,
    "half torch.save 1": 0,  # the optimizer, cut short
    "after torch.save 3": 0,  # all but the trainer's state
    "after transformers.trainer_callback.TrainerState.save_to_json 1": 0,
    "before visual_r1.manifest.seal 1": 0,
    "after visual_r1.manifest.seal 1": 2,
    "before visual_r1.methods.checkpoints.remove_checkpoint 1": 4,
    "before visual_r1.run_folder.shutil.rmtree 1": 4,
    "before visual_r1.models.save_policy 1": 8,
    "before visual_r1.models.checkpoint_chat_template 1": 8,  # the weights are written, under another name
    "after visual_r1.models.save_policy 1": 8,
    "before visual_r1.experiment.write_json 1": 8,
    "before visual_r1.files.os.replace 3": 8,
    "before visual_r1.experiment.write_json 2": 8,
}


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_kill_at_each_stage_of_saving_is_survived(place, alone, kind):
    folder = place.folder(f"{kind}-points")
    for point, kept in POINTS.items():
        code, process = place.run(kind, f"{kind}-points", die=point)
        assert code == -signal.SIGKILL, (point, process.log.read_text())
        assert kept_step(folder) == kept, point
    code, process = place.run(kind, f"{kind}-points")
    assert code == 0, process.log.read_text()
    assert_same(folder, alone(kind)[0])


def test_a_stage_begins_with_the_same_adapters_when_the_one_before_it_is_not_run_again(place, alone):
    """The second stage is killed before it has saved; the first has drawn numbers before its adapters were drawn."""
    code, process = place.run("chain", "chain-second", die="before transformers.trainer.Trainer.save_model 3")
    assert code == -signal.SIGKILL and process.started_at() == [0, 0]
    folder = place.folder("chain-second")
    assert kept_step(folder) == 3
    code, process = place.run("chain", "chain-second")
    assert code == 0 and process.started_at() == [0], process.log.read_text()
    assert_same(folder, alone("chain")[0])
