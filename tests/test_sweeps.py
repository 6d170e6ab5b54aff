"""``python run.py -m``, with real jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    *("method=eval", "tracker=none", "scale.num_threads=1", "scale.probe_size=2", "scale.benchmark_size=4"),
    *("scale.train_size=4", "scale.max_completion_length=4"),
)

# `python run.py ARGUMENTS`, and what that process itself has loaded and taken.
WATCHED = """
import psutil, runpy, sys
program, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, program.rpartition("/")[0])
try:
    runpy.run_path(program, run_name="__main__")
finally:
    heavy = {"torch", "transformers", "trl", "datasets", "wandb", "matplotlib", "pyarrow"} & set(sys.modules)
    print(f"loaded {sorted(heavy)}, {psutil.Process().memory_info().rss >> 20} MiB")
"""


def run(place, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WATCHED, str(ROOT / "run.py"), *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory, checkpoint):
    """Where a sweep of two jobs was typed, what was typed, and how it went."""
    place = tmp_path_factory.mktemp("swept")
    # The last one is filled in where it is run: filled in before, its quotes would end amid a list's.
    quoted = ["freeze=vision", "name=base-eval", "tracker.project='of ${freeze.parts}'"]
    arguments = [*TINY, f"model.path={checkpoint('base')}", *quoted]
    return place, arguments, run(place, "-m", *arguments, "seed=0,1")


def test_a_sweep_runs_each_job_as_if_it_had_been_typed_alone(swept):
    place, _, done = swept
    assert done.returncode == 0, done.stderr
    runs = [RunFolder(place / "runs" / "base-eval" / f"seed{seed}") for seed in (0, 1)]
    assert all(one.is_finished for one in runs)
    summary = read_json(runs[1].summary)
    assert summary["command"].startswith("python run.py method=eval") and summary["command"].endswith("seed=1")
    assert done.stdout.count("loading torch") == done.stdout.count("on spatial") == 2
    assert "2 jobs" in done.stdout and "2 finished" in done.stdout
    [sweep] = (place / "runs" / ".sweeps").iterdir()
    assert {"sweep.json", "job_0.json", "job_0.log", "job_1.json", "job_1.log"} <= {one.name for one in sweep.iterdir()}
    assert "on spatial" in (sweep / "job_1.log").read_text()


def test_the_process_that_was_typed_loads_nothing(swept):
    _, _, done = swept
    *_, last = done.stdout.splitlines()
    assert last.startswith("loaded [], ")
    assert int(last.split()[-2]) < 200


def test_typed_again_a_sweep_skips_what_is_finished_and_says_what_cannot_run(swept):
    place, arguments, _ = swept
    again = run(place, "-m", *arguments, "seed=0,1,-1")
    assert again.returncode == 1
    assert "2 skipped, 1 failed" in again.stdout and again.stdout.count("\nloading torch") == 1
    assert again.stderr.count("error: ") == 1 and "error: seed=-1: expected 0 or more" in again.stderr
    assert "job 2: exit code 1" in again.stdout and "  | error: seed=-1: expected 0 or more" in again.stdout
    # The same runs otherwise evaluated are others.
    other = run(place, "-m", *arguments, "seed=0,1", "benchmark.temperature=1")
    assert other.returncode == 1 and "2 failed" in other.stdout and "loading torch" not in other.stdout
    assert other.stderr.count("a finished run with another configuration (benchmark.temperature)") == 2


def test_bad_input_is_refused_before_the_first_job(tmp_path):
    for arguments, said in (
        (("method=grpo,gpro",), "gpro"),
        (("scale.max_stepss=1,2",), "max_stepss"),
        (("scale.max_steps=1,2",), "would both write runs/base-grpo/seed0"),
        (("launcher=nothing",), "nothing"),
    ):
        refused = run(tmp_path, "-m", *arguments)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1 and said in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_starts_no_sweeps_under_torchrun(tmp_path):
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": str(ROOT)}
    refused = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", "seed=0,1"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr == "error: a sweep starts each job's processes itself: leave torchrun and srun out\n"
