"""The launchers and the sweeper that the extras bring, with real runs."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from visual_r1.config import CONF, spell_out
from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder
from visual_r1.sweeps.compose import compose_sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("scale.num_threads=1", "scale.max_steps=1", "scale.prompts_per_step=1", "scale.num_generations=2"),
    *("scale.micro_batch_size=2", "scale.max_completion_length=4", "scale.train_size=8", "scale.probe_size=2"),
    *("scale.probe_every_steps=100", "scale.benchmark_size=4", "scale.save_every_steps=100", "tracker=none"),
)

# A step that kills its run, once, as `kill -9` does, and one that is not over before its run is told to stop.
USER_REWARD = """
import os, pathlib, signal, time
from visual_r1 import preemption

def deadly(completion_ids, trainer_state, **columns):
    flag = pathlib.Path("die")
    if trainer_state.global_step == 2 and flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.1 * len(ids) for ids in completion_ids]


def patient(completion_ids, trainer_state, **columns):
    while trainer_state.global_step == 2 and not preemption.is_announced():
        time.sleep(0.01)
    return [0.1 * len(ids) for ids in completion_ids]
"""
MINE = "+reward/term@reward.terms.mine=trl_function"
PATIENT = ("scale.max_steps=4", MINE, "reward.terms.mine.function.path=user_reward_of_sweeps.patient")
DEADLY = (
    *("scale.max_steps=3", "scale.save_every_steps=1"),
    *(MINE, "reward.terms.mine.function.path=user_reward_of_sweeps.deadly"),
)


@dataclass(frozen=True)
class Place:
    """Where sweeps are typed."""

    path: Path
    checkpoint: Path

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "-m", *TINY, f"model.path={self.checkpoint}", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": f"{self.path}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sweep(self, *arguments):
        running = self.start(*arguments)
        stdout, stderr = running.communicate(timeout=600)
        return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)

    def run(self, name, seed=0):
        return RunFolder(self.path / "runs" / name / f"seed{seed}")

    def records(self):
        """What the last sweep has written down of each job."""
        [*_, last] = sorted((self.path / "runs" / ".sweeps").iterdir())
        return [read_json(path) for path in sorted(last.glob("job_*.json"))]

    def states(self):
        return [record["state"] for record in self.records()]


@pytest.fixture
def place(tmp_path, checkpoint):
    (tmp_path / "user_reward_of_sweeps.py").write_text(USER_REWARD)
    return Place(tmp_path, checkpoint("base"))


def wait_for_step(running, folder, step):
    while len(folder.read_metrics()) <= step:
        assert running.poll() is None, f"{folder.path} has not come to step {step}: {running.communicate()}"
        time.sleep(0.1)


def test_joblib_runs_jobs_at_once_and_goes_on_after_those_that_fail(place):
    arguments = (*DEADLY, "launcher=joblib")
    (place.path / "die").touch()
    done = place.sweep(*arguments, "seed=-1,0,1")
    assert done.returncode == 1
    assert sorted(place.states()) == ["failed", "failed", "finished"] and place.states()[0] == "failed"
    assert "1 finished" in done.stdout and "2 failed" in done.stdout
    assert "[0] error: seed=-1: expected 0 or more\n" in done.stderr
    assert "job 0: exit code 1\n" in done.stdout and "  | error: seed=-1: expected 0 or more\n" in done.stdout
    assert re.search(r"^job [12]: killed by SIGKILL$", done.stdout, re.MULTILINE)
    assert re.search(r"^\[[12]\] base-grpo: seed [01], 3 steps", done.stdout, re.MULTILINE)
    started = [done.stdout.index(f"job {number}: runs") for number in (0, 1)]
    assert max(started) < done.stdout.index("job 0: failed")

    again = place.sweep(*arguments, "seed=0,1")
    assert again.returncode == 0 and sorted(place.states()) == ["resumed", "skipped"]
    for seed in (0, 1):
        assert [row["step"] for row in place.run("base-grpo", seed).read_metrics()] == [0, 1, 2, 3]


def test_jobs_of_joblib_save_when_the_sweep_is_stopped_and_go_on_when_it_is_typed_again(place):
    arguments = (*PATIENT, "launcher=joblib", "seed=0,1,2")
    running = place.start(*arguments)
    for seed in (0, 1):
        wait_for_step(running, place.run("base-grpo", seed), 2)
    running.send_signal(signal.SIGTERM)
    stdout, stderr = running.communicate(timeout=600)
    assert running.returncode == 75, stderr
    assert place.states() == ["preempted", "preempted"]
    assert "2 preempted, 1 not started" in stdout
    assert all(place.run("base-grpo", seed).latest_checkpoint() for seed in (0, 1))

    again = place.sweep(*arguments, "seed=0,1")
    assert again.returncode == 0, again.stderr
    assert place.states() == ["resumed", "resumed"]
    assert [row["step"] for row in place.run("base-grpo", 1).read_metrics()] == list(range(5))


def test_submitit_queues_a_job_again_that_has_saved_because_its_time_is_over(place):
    running = place.start(*PATIENT, "launcher=submitit_local", "seed=0")
    folder = place.run("base-grpo")
    wait_for_step(running, folder, 2)
    processes = psutil.Process(running.pid).children(recursive=True)
    [task] = [one for one in processes if "submitit.core._submit" in one.cmdline()]
    task.send_signal(signal.SIGUSR2)  # as SLURM does with --signal=USR2@300
    stdout, stderr = running.communicate(timeout=600)
    assert running.returncode == 0, stderr
    assert place.states() == ["resumed"] and "1 resumed" in stdout
    assert len(read_json(folder.provenance)["resumes"]) == 1
    assert [row["step"] for row in folder.read_metrics()] == list(range(5))


def test_ray_runs_the_jobs(place):
    done = place.sweep("launcher=ray", "hydra.launcher.ray.remote.num_cpus=1", "method=eval", "seed=0,-1")
    assert done.returncode == 1, done.stderr
    assert place.states() == ["finished", "failed"]
    assert place.run("base-eval").is_finished
    assert "1 finished, 1 failed" in done.stdout


def test_optuna_looks_for_the_probes_accuracy_and_survives_a_failed_job(place):
    space = ("method.trl.temperature=choice(0,1)", "seed=choice(0,1,2)", "name=t${method.trl.temperature}")
    arguments = ("search=optuna", "launcher=joblib", "hydra.sweeper.n_trials=4", *space)
    done = place.sweep(*arguments)
    records = place.records()
    assert {record["state"] for record in records} == {"finished", "failed"}, done.stdout
    assert done.returncode == 1
    for record in records:
        assert (record["state"] == "failed") == ("runs/t0/" in record["run"])  # a group of equal samples is refused
    finished = [record for record in records if record["state"] == "finished"]
    for record in finished:
        assert record["objective"] == read_json(place.path / record["run"] / "summary.json")["probe_accuracy_after"]
    [*_, last] = sorted((place.path / "runs" / ".sweeps").iterdir())
    found = yaml.safe_load((last / "optimization_results.yaml").read_text())
    assert found["best_value"] == max(record["objective"] for record in finished)
    assert found["best_params"]["method.trl.temperature"] == 1
    assert "\nbest: job " in done.stdout

    again = place.sweep(*arguments)  # the same seed chooses the same jobs
    assert [record["run"] for record in place.records()] == [record["run"] for record in records]
    assert set(place.states()) == {"skipped", "failed"}, again.stdout


def test_a_search_that_finds_nothing_says_so(place):
    done = place.sweep("search=optuna", "hydra.sweeper.n_trials=1", "seed=choice(-2,-1)")
    assert done.returncode == 1 and "best: none, for no job has finished" in done.stdout
    assert "Traceback" not in done.stderr


# Takes what it is given, and refuses it.
SBATCH = """#!/bin/sh
cat "$1" > {script}
echo 'sbatch: error: invalid partition' >&2
exit 1
"""


def test_slurm_is_asked_for_the_machines_and_gpus_of_a_job(place, monkeypatch):
    program, script = place.path / "bin" / "sbatch", place.path / "script"
    program.parent.mkdir()
    program.write_text(SBATCH.format(script=script))
    program.chmod(0o755)
    (program.parent / "srun").symlink_to(program)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    layout = ("distributed=ddp", "distributed.num_processes=8", "distributed.num_nodes=2")
    done = place.sweep("launcher=submitit_slurm", *layout, "seed=0,1", "hydra.launcher.partition=gpu")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "invalid partition" in errors[0] and "Traceback" not in done.stderr
    asked = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if "#SBATCH" in line}
    assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "cpus-per-gpu=8", "mem-per-gpu=64G"} <= asked
    assert {"array=0-1%2", "time=240", "signal=USR2@300", "requeue", "partition=gpu"} <= asked


def commands():
    lines = (ROOT / "docs" / "sweeps.md").read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python run.py -m")]


def test_the_page_has_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_page_composes(arguments, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: program)
    assert len(compose_sweep(spell_out(arguments), gpus=("0", "1", "2", "3")).jobs) >= 2


@pytest.mark.parametrize("launcher", sorted(file.stem for file in (CONF / "launcher").glob("*.yaml")))
def test_every_launcher_composes(launcher, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: program)
    [job] = compose_sweep(["-m", f"launcher={launcher}"], gpus=()).jobs
    assert job.hydra.runtime.choices["hydra/launcher"] == launcher
    assert "launcher" not in job and "search" not in job  # how a run was started is no part of it


def test_the_example_of_a_search_space_composes():
    low, high = compose_sweep(["-m", "search=learning_rate"], gpus=()).jobs
    assert (low.method.trl.learning_rate, high.method.trl.learning_rate) == (1e-6, 1e-3)
    assert (low.method.trl.beta, high.method.trl.beta) == (0.0, 0.04)
    assert str(low.hydra.sweeper.direction).endswith("maximize") and low.hydra.sweeper.sampler.seed == 0
