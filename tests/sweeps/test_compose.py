"""A sweep is refused before its first job starts, in one line, and its launcher is told what the jobs need."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from visual_r1.config import ConfigError, spell_out
from visual_r1.sweeps import compose
from visual_r1.sweeps.compose import compose_sweep, is_sweep


def sweep(*arguments, gpus=()):
    return compose_sweep(["-m", *arguments], gpus=gpus)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "seed=0,1"], True),
        (["seed=0,1", "--multirun"], True),
        (["seed=0"], False),
        (["-m", "--help"], False),
        (["-m", "--cfg", "job"], False),
    ],
)
def test_a_sweep_is_what_runs_several_jobs(arguments, expected):
    assert is_sweep(arguments) is expected


def test_the_jobs_are_known_before_the_first_starts():
    composed = sweep("model=base,instruct", "seed=0,1", "runs_dir=here")
    names = ["here/base-grpo/seed0", "here/base-grpo/seed1", "here/instruct-grpo/seed0", "here/instruct-grpo/seed1"]
    assert composed.runs == names
    assert str(composed.folder.path.parent).endswith("here/.sweeps")
    assert composed.settings == (f"hydra.sweep.dir='here/.sweeps/{composed.folder.path.name}'",)


def test_the_number_of_a_job_may_stand_in_its_name():
    composed = sweep("name=try${hydra:job.num}", "scale.max_steps=1,2")
    assert composed.runs == ["runs/try0/seed0", "runs/try1/seed0"]
    assert [job.scale.max_steps for job in composed.jobs] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=grpo,sft,gpro"], "gpro"),
        (["scale.max_stepss=1,2"], "max_stepss"),
        (["seed=0,1,x"], "seed=x"),
        (["seed=range(0,2"], "range(0,2"),
        (["model=checkpoint", "seed=0,1"], "model.path"),
        (["name=a,../b"], "name=../b"),
        (["launcher=joblip"], "joblip"),
        (["hydra/launcher=joblip"], "joblip"),
        (["scale.max_steps=1,2"], "jobs 0 and 1 would both write runs/base-grpo/seed0"),
        (["seed=0,1", "reward=hard,hard"], "jobs 0 and 1 would both write runs/base-grpo-hard/seed0"),
    ],
)
def test_what_cannot_run_is_one_line(arguments, said):
    with pytest.raises(ConfigError) as refused:
        sweep(*arguments)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["method.trl.learning_rate=1e-4,1e-5"], "name='base-grpo-${method.trl.learning_rate}'"),
        (["tracker=none,offline"], "name='base-grpo-${tracker.name}'"),
    ],
)
def test_jobs_that_would_share_a_folder_are_told_how_not_to(arguments, fix):
    with pytest.raises(ConfigError) as refused:
        sweep(*arguments)
    assert str(refused.value).endswith(fix)
    assert len(set(sweep(*arguments, fix.replace("'", "")).runs)) == 2


@pytest.mark.parametrize("named", ["name=a-${now:%H-%M}", "runs_dir=runs/${now:%Y}"])
def test_jobs_are_not_named_by_the_clock(named):
    with pytest.raises(ConfigError, match="named by the clock"):
        sweep("seed=0,1", named)


def test_what_was_typed_under_hydras_name_is_ours(monkeypatch):
    monkeypatch.setattr("visual_r1.config._check_installed", lambda argument: None)
    assert spell_out(["hydra/launcher=joblib", "seed=0,1"]) == ["launcher=joblib", "seed=0,1"]
    assert spell_out(["hydra/sweeper=optuna", "-m"]) == ["search=optuna", "-m"]
    assert spell_out(["hydra/launcher=other"]) == ["hydra/launcher=other"]


@pytest.mark.parametrize(
    ("argument", "extra"),
    [
        ("launcher=joblib", "sweeps"),
        ("hydra/launcher=submitit_slurm", "sweeps"),
        ("launcher=ray", "ray"),
        ("search=learning_rate", "sweeps"),
    ],
)
def test_a_missing_plugin_is_named_with_its_extra(argument, extra, monkeypatch):
    monkeypatch.setattr("visual_r1.config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"is not installed: pip install 'visual-r1\[{extra}\]'"):
        spell_out(["-m", argument])


def job(launcher, *, processes=1, nodes=1, **settings):
    """As much of a composed job as a launcher's settings follow from; its plugin need not be installed."""
    choices = {"hydra/launcher": launcher}
    needs = {"num_processes": processes, "num_nodes": nodes}
    return OmegaConf.create({"hydra": {"launcher": settings, "runtime": {"choices": choices}}, "distributed": needs})


def settings(jobs, *, typed=(), gpus=()):
    return compose._launcher_settings(jobs, typed, gpus)


FOUR = ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("processes", "gpus", "expected"),
    [
        ([1], FOUR, ["++hydra.launcher.n_jobs=4"]),
        ([1, 2], FOUR, ["++hydra.launcher.n_jobs=2"]),
        ([8], FOUR, ["++hydra.launcher.n_jobs=1"]),
        ([1], (), []),
    ],
)
def test_joblib_runs_as_many_jobs_as_the_gpus_hold(processes, gpus, expected):
    jobs = [job("joblib", processes=number, n_jobs=2) for number in processes]
    assert settings(jobs, gpus=gpus) == expected
    assert settings(jobs, gpus=gpus, typed=["hydra.launcher.n_jobs=3"]) == []


def test_slurm_is_asked_for_what_a_job_needs(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: f"bin/{program}")
    jobs = [job("submitit_slurm", processes=8, nodes=2)]
    assert settings(jobs) == ["++hydra.launcher.nodes=2", "++hydra.launcher.gpus_per_node=4"]
    assert settings(jobs, typed=["hydra.launcher.gpus_per_node=0"]) == ["++hydra.launcher.nodes=2"]


def test_ray_is_told_of_gpus(monkeypatch):
    ray = {"init": {}, "remote": {}}
    assert settings([job("ray", processes=2, ray=ray)], gpus=FOUR) == ["++hydra.launcher.ray.remote.num_gpus=2"]
    assert settings([job("ray", processes=2, ray=ray)]) == []
    typed = ["+hydra.launcher.ray.remote.num_gpus=0"]
    assert settings([job("ray", ray={"init": {"address": "auto"}})], typed=typed, gpus=FOUR) == []


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([job("joblib", n_jobs=0)], "n_jobs=0: expected at least 1"),
        ([job("submitit_slurm"), job("submitit_slurm", processes=4)], "make two sweeps of them"),
        ([job("ray"), job("ray", processes=4)], "make two sweeps of them"),
        ([job("submitit_slurm")], "there is no sbatch here"),
        ([job("ray", ray={"init": {"address": "auto"}})], "say what a job needs of the cluster"),
    ],
)
def test_a_launcher_that_cannot_run_the_jobs_says_so(jobs, said, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(ConfigError, match=said):
        settings(jobs)
