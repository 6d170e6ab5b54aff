"""One run in several processes, by whatever it was started: the same numbers, one record, and it goes on if killed."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.processes import COMMON, RUN, STEPS, ended, run, start, untimed, with_torchrun
from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import read_offline_wandb

# Batches of two, so that each of two processes has one, and drawn, so that a batch with another's seed would show.
EVALUATION = (*COMMON, "method=eval", "scale.rollout_batch_size=2", "benchmark.temperature=1.0", "name=run")
TRAINING = (*COMMON, "scale.micro_batch_size=4", "scale.rollout_batch_size=2", "name=run")
OF_TASK = {
    "SLURM_JOB_ID": str(os.getpid()),  # of which the port is made: two suites on one machine must not meet
    **{"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"},
}


def folder_of(path):
    return RunFolder(path / "runs" / "run" / "seed0")


def answers(path):
    """What a run has scored, apart from what its items were sampled with."""
    folder = folder_of(path)
    summary = read_json(folder.summary)
    assert summary["num_items"] == 4
    return read_json(folder.evaluation), folder.evaluation_items.read_bytes()


def by_run_py(path, *arguments):
    return [run(path, *arguments, "distributed=ddp")]


def by_torchrun(path, *arguments):
    return [with_torchrun(path, RUN, *arguments)]


def by_accelerate(path, *arguments):
    # Its own choice of devices: without one, it would start a single process on a CPU.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
    launch += ("--main_process_port=0",)  # any that is free
    return [ended(start(path, *launch, "--mixed_precision=bf16", "--dynamo_backend=no", RUN, *arguments))]


def by_srun_a_task_a_gpu(path, *arguments):
    tasks = [{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(2)]
    started = [start(path, RUN, *arguments, **OF_TASK, **task, SLURM_STEP_NUM_NODES="1") for task in tasks]
    return [ended(one) for one in started]


def by_srun_a_task_a_machine(path, *arguments):
    tasks = [{"SLURM_PROCID": str(number), "SLURM_LOCALID": "0"} for number in range(2)]
    both = ("distributed=ddp", "distributed.num_nodes=2")
    started = [start(path, RUN, *arguments, *both, **OF_TASK, **task, SLURM_STEP_NUM_NODES="2") for task in tasks]
    return [ended(one) for one in started]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, checkpoint):
    """The answers of one process."""
    path = tmp_path_factory.mktemp("alone")
    done = run(path, *EVALUATION, f"model.path={checkpoint('base')}")
    assert done.returncode == 0, done.stderr
    return answers(path)


@pytest.mark.parametrize(
    "started", [by_run_py, by_torchrun, by_accelerate, by_srun_a_task_a_gpu, by_srun_a_task_a_machine]
)
def test_each_item_is_asked_once_and_answered_as_by_one_process(alone, tmp_path, checkpoint, started):
    ends = started(tmp_path, *EVALUATION, f"model.path={checkpoint('base')}")
    assert not any(one.returncode for one in ends), "".join(one.stderr for one in ends)
    assert answers(tmp_path) == alone
    assert "".join(one.stdout for one in ends).count("figure: ") == 1


# Dies once, in the process that has nothing to write, as under `kill -9`; or loses what it needs there.
USER_REWARD = """
import os, pathlib, signal
from visual_r1.rollout.engine import EngineError

def by_length(completion_ids, trainer_state, **columns):
    die, lose = (pathlib.Path(__file__).parent / name for name in ("die", "lose"))
    if trainer_state.global_step == 2 and os.environ.get("RANK") == "1":
        if lose.exists():
            raise EngineError("the engine is gone")
        if die.exists():
            die.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return [0.1 * len(ids) for ids in completion_ids]
"""
REWARD = (
    "+reward/term@reward.terms.by_length=trl_function",
    "reward.terms.by_length.function.path=user_reward.by_length",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    """A run in two processes of one machine that nothing has interrupted."""
    path = tmp_path_factory.mktemp("whole")
    (path / "user_reward.py").write_text(USER_REWARD)
    done = run(path, *TRAINING, *REWARD, f"model.path={checkpoint('base')}", "distributed=ddp")
    assert done.returncode == 0, done.stderr
    return path


def curves(path):
    return untimed(folder_of(path).read_metrics())


@pytest.mark.parametrize("distributed", ["ddp", "zero3"])
def test_a_run_whose_process_was_killed_goes_on_by_the_same_command(whole, tmp_path, checkpoint, distributed):
    (tmp_path / "user_reward.py").write_text(USER_REWARD)
    (tmp_path / "die").touch()
    chosen = (f"distributed={distributed}", "distributed.num_processes=2")
    command = [*TRAINING, *REWARD, f"model.path={checkpoint('base')}", *chosen, "tracker.wandb_mode=offline"]
    killed = run(tmp_path, *command)
    assert killed.returncode == 1
    assert killed.stderr.endswith(
        "error: process 1 of 2 was killed by SIGKILL and the others were stopped; the same command resumes the run\n"
    )
    folder = folder_of(tmp_path)
    assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-2" and not folder.is_finished

    resumed = run(tmp_path, *command)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("figure: ") == 1
    assert len(read_json(folder.provenance)["resumes"]) == 1
    assert [row["step"] for row in folder.read_metrics()] == list(range(STEPS + 1))
    [file] = folder.path.glob("wandb/**/*.wandb")  # of rank 0, and of both starts
    history = read_offline_wandb(file).history
    rows = [{key: value for key, value in row.items() if key[0] != "_" and "rollouts/" not in key} for row in history]
    assert rows == [{key: value for key, value in row.items() if value is not None} for row in folder.read_metrics()]
    if distributed == "ddp":
        assert curves(tmp_path) == curves(whole) and answers(tmp_path) == answers(whole)


def test_what_one_process_alone_has_met_is_said_once(tmp_path, checkpoint):
    (tmp_path / "user_reward.py").write_text(USER_REWARD)
    (tmp_path / "lose").touch()
    done = run(tmp_path, *TRAINING, *REWARD, f"model.path={checkpoint('base')}", "distributed=ddp")
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert (done.returncode, errors) == (1, ["error: process 1: the engine is gone"]), done.stderr


def test_a_run_that_was_killed_in_its_evaluation_does_not_train_again(whole, tmp_path, checkpoint):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = folder_of(tmp_path)
    expected, before = answers(whole), curves(whole)
    for path in (folder.summary, folder.evaluation, folder.evaluation_items):
        path.unlink()
    (tmp_path / "user_reward.py").write_text("def by_length(**columns):\n    raise AssertionError('it trains')\n")
    again = run(tmp_path, *TRAINING, *REWARD, f"model.path={checkpoint('base')}", "distributed=ddp")
    assert again.returncode == 0, again.stderr
    assert answers(tmp_path) == expected and curves(tmp_path) == before


HOSTS = ("10.213.7.1", "10.213.7.2")


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them, each as good as a machine; the prefix of a command in each."""
    names = [f"visual-r1-{os.getpid()}-{number}" for number in range(2)]
    ends = [f"vr{os.getpid() % 10**9}{letter}" for letter in "ab"]

    def ip(*arguments):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"ip {' '.join(arguments)}: {done.stderr.strip()}; this test needs root and iproute2", False)

    if shutil.which("ip") is None:
        pytest.fail("this test needs the command `ip`: apt-get install iproute2", False)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, host in zip(names, ends, HOSTS, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{host}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_two_machines_train_as_one(whole, tmp_path, checkpoint, machines):
    (tmp_path / "user_reward.py").write_text(USER_REWARD)
    command = [*TRAINING, *REWARD, f"model.path={checkpoint('base')}", "distributed=ddp"]
    command += ["distributed.num_nodes=2", f"distributed.rendezvous={HOSTS[0]}:29511"]
    ends = [ended(one) for one in [start(tmp_path, RUN, *command, before=machine) for machine in machines]]
    assert not any(one.returncode for one in ends), "".join(one.stderr for one in ends)
    assert "".join(one.stdout for one in ends).count("figure: ") == 1
    assert curves(tmp_path) == curves(whole) and answers(tmp_path) == answers(whole)


def test_a_process_killed_on_one_machine_is_named_there_and_ends_the_other(tmp_path, checkpoint, machines):
    (tmp_path / "user_reward.py").write_text(USER_REWARD)
    (tmp_path / "die").touch()
    command = [*TRAINING, *REWARD, f"model.path={checkpoint('base')}", "distributed=ddp"]
    command += ["distributed.num_nodes=2", f"distributed.rendezvous={HOSTS[0]}:29511"]
    ends = [ended(one) for one in [start(tmp_path, RUN, *command, before=machine) for machine in machines]]
    assert [one.returncode for one in ends] == [1, 1]
    said = [line for one in ends for line in one.stderr.splitlines() if "was killed by SIGKILL" in line]
    assert len(said) == 1 and "process 1 of 2" in said[0]
    assert folder_of(tmp_path).latest_checkpoint() is not None
