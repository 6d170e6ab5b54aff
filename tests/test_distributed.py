"""Several processes train as one: the numbers of one process, one record, one error, and a run that can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from tests.replaying import SECONDS_LATE
from tests.replaying import main as train_here
from visual_r1 import distributed
from visual_r1.config import CONF, build, compose_config
from visual_r1.distributed import AlreadySaidError, DistributedError
from visual_r1.experiment import prepare
from visual_r1.files import read_json
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.sft import Sft
from visual_r1.models import ModelSource, load_policy
from visual_r1.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="needs DeepSpeed, pip install 'visual-r1[deepspeed]', and g++, with which it compiles two minutes once",
)
# Two processes on whatever machine, and rounding that is the same on each.
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

PROMPTS, GROUP, STEPS = 4, 4, 3
COMMON = (
    "tracker=none",
    "scale.num_threads=1",
    f"scale.max_steps={STEPS}",
    f"scale.prompts_per_step={PROMPTS}",
    f"scale.num_generations={GROUP}",
    "scale.max_completion_length=8",
    f"scale.sft_steps={STEPS}",
    "scale.sft_examples_per_step=8",
    "scale.train_size=32",
    "scale.probe_size=2",
    "scale.probe_every_steps=10",
    "scale.benchmark_size=4",
    "scale.save_every_steps=2",
    "scale.rollouts_every_steps=1",
)
# Gradient descent, whose steps are as long as the gradient: Adam would hide that, and enlarge the rounding of zeros.
PLAIN = ("++method.trl.optim=sgd", "method.trl.learning_rate=0.003", "method.trl.lr_scheduler_type=constant")
LENGTH = ("+reward/term@reward.terms.length=length_bonus", "reward.terms.length.function.per_token=0.1")

EXPERIMENTS = {
    "grpo": (*PLAIN, *LENGTH, "method.trl.beta=0.0"),
    "parts": (*PLAIN, *LENGTH, "method.trl.beta=0.0"),  # grpo in more micro-batches
    "sft": (*PLAIN, "method=sft"),
    "straddling": (*PLAIN, *LENGTH, "scale.prompts_per_step=3", "method.trl.beta=0.0"),
    "resumed": (*LENGTH, "method.trl.beta=0.04"),
}
MICRO_BATCH = {  # of one process, of each of two
    "grpo": (16, 8),
    "parts": (16, 4),  # two micro-batches where one process has one
    "sft": (8, 2),
    "straddling": (12, 6),
    "resumed": (16, 4),
}


def untimed(metrics):
    return [
        {key: value for key, value in row.items() if not key.startswith("time/") and key != "step_time"}
        for row in metrics
    ]


def overrides_of(name, checkpoint, runs, *, processes):
    return [
        *COMMON,
        *EXPERIMENTS[name],
        f"name={name}",
        f"runs_dir={runs}",
        f"model.path={checkpoint}",
        f"method.micro_batch_size={MICRO_BATCH[name][processes - 1]}",
    ]


def with_torchrun(path, *arguments, **environment):
    """Two processes in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
        cwd=path,
        env={**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory, checkpoint):
    """The experiments in this process, by name."""
    runs = tmp_path_factory.mktemp("one")
    names = ("grpo", "sft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train_here([overrides_of(name, checkpoint("base"), runs, processes=1) for name in names])
    return {name: RunFolder(runs / name / "seed0") for name in names}


@pytest.fixture(scope="module", params=["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def two(request, tmp_path_factory, checkpoint):
    """The experiments in two processes, by name; ``resumed`` was cut off at its first checkpoint, ``whole`` was not."""
    path = tmp_path_factory.mktemp(request.param)
    chosen = [f"distributed={request.param}", "distributed.num_processes=2"]
    experiments = [
        [*overrides_of(name, checkpoint("base"), path, processes=2), *chosen] for name in (*EXPERIMENTS, "resumed")
    ]
    file = path / "experiments.json"
    file.write_text(json.dumps(experiments))
    done = with_torchrun(path, "-m", "tests.replaying", file)
    assert done.returncode == 0, done.stderr
    return {name: RunFolder(path / name / "seed0") for name in (*EXPERIMENTS, "whole")}


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_two_processes_learn_what_one_does(one, two, name):
    """The same prompts and completions, so what differs is rounding."""
    ours, theirs = two[name].read_metrics(), one[name].read_metrics()
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(STEPS + 1))
    for row, other in zip(untimed(ours), untimed(theirs), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=3e-4, abs=1e-6), (row["step"], key)

    assert_same_weights(two[name], one[name])


def test_the_step_does_not_depend_on_the_micro_batches_of_a_process(one, two):
    assert_same_weights(two["parts"], one["grpo"])


def assert_same_weights(ours, theirs):
    expected = load_file(theirs.model / "model.safetensors")
    weights = load_file(ours.model / "model.safetensors")
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-6, msg=key)


def test_the_policy_moves(two, checkpoint):
    start = load_file(checkpoint("base") / "model.safetensors")
    for name in ("grpo", "sft"):
        moved = load_file(two[name].model / "model.safetensors")
        assert max((moved[key] - start[key]).abs().max() for key in start) > 1e-4


def test_a_time_is_the_mean_over_the_processes(two):
    for row in two["grpo"].read_metrics()[1:]:
        assert row["time/rollout"] > SECONDS_LATE / 2  # in rank 0 alone it is a fraction of this


def rollouts_of(folder, step):
    rows = pyarrow.parquet.read_table(folder.completions_at(step)).to_pylist()
    return [row for row in rows if row["source"] == "train"]


@pytest.mark.parametrize("name", ["grpo", "straddling"])
def test_a_completion_is_judged_within_its_group_wherever_it_was_sampled(two, name):
    prompts = PROMPTS if name == "grpo" else 3  # of three prompts the second one's group is shared by both processes
    terms = two[name].read_config()["reward"]["terms"]
    weights = {term: node["weight"] for term, node in terms.items()}
    for step in range(1, STEPS + 1):
        rows = rollouts_of(two[name], step)
        assert [row["group"] for row in rows] == [number for number in range(prompts) for _ in range(GROUP)]
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            assert len({row["example_id"] for row in group}) == 1
            rewards = [sum(weight * row[f"score/{term}"] for term, weight in weights.items()) for row in group]
            for row, reward in zip(group, rewards, strict=True):
                expected = (reward - fmean(rewards)) / (stdev(rewards) + 1e-4)
                assert row["advantage"] == pytest.approx(expected, abs=1e-4)
        if name == "straddling":
            _, shared, _ = (rows[start : start + GROUP] for start in range(0, len(rows), GROUP))
            parts = [[row["completion"] for row in part] for part in (shared[: GROUP // 2], shared[GROUP // 2 :])]
            assert parts[0] != parts[1]  # each process draws its own
        [curves] = [row for row in two[name].read_metrics() if row["step"] == step]
        assert curves["completions/mean_length"] == pytest.approx(fmean(row["num_tokens"] for row in rows))
        hits = sum(len(row["keyword_hits"]) for row in rows)
        tokens = sum(row["num_tokens"] for row in rows)
        assert curves["reflection/per_1k_tokens"] == pytest.approx(1000 * hits / tokens)


def test_a_resumed_run_ends_with_the_same_numbers(two):
    assert untimed(two["resumed"].read_metrics()) == untimed(two["whole"].read_metrics())
    ours, theirs = (load_file(two[name].model / "model.safetensors") for name in ("resumed", "whole"))
    assert all(torch.equal(weight, theirs[key]) for key, weight in ours.items())


def test_one_process_writes_and_another_loads(two):
    for name in EXPERIMENTS:
        names = {path.name for path in two[name].path.iterdir() if not path.name.startswith(".")}
        assert names == {"config.yaml", "provenance.json", "metrics.jsonl", "completions", "checkpoints", "model"}
        load_policy(ModelSource(name=name, path=str(two[name].model)))


# What follows goes through the command, with the real engine.

# Dies once, in the process that has nothing to write, as under `kill -9`.
USER_REWARD = """
import os, pathlib, signal

def by_length(completion_ids, trainer_state, **columns):
    flag = pathlib.Path(__file__).parent / "die"
    if trainer_state.global_step == 3 and os.environ.get("RANK") == "1" and flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.1 * len(ids) for ids in completion_ids]
"""


def run(path, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=path,
        env={**os.environ, **ON_CPU, "PYTHONPATH": f"{path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_run_is_resumed_and_a_sweep_goes_on_after_a_job_that_cannot_run(tmp_path, checkpoint):
    (tmp_path / "user_reward.py").write_text(USER_REWARD)
    (tmp_path / "die").touch()
    overrides = [
        *COMMON,
        f"model.path={checkpoint('base')}",
        "distributed=ddp",
        "+reward/term@reward.terms.by_length=trl_function",
        "reward.terms.by_length.function.path=user_reward.by_length",
        "scale.max_steps=4",
        "scale.micro_batch_size=4",
    ]
    killed = run(tmp_path, *overrides, "name=run1")
    assert killed.returncode == 1
    assert killed.stderr.endswith(
        "error: process 1 of 2 was killed by SIGKILL and the others were stopped; the same command resumes the run\n"
    )
    folder = RunFolder(tmp_path / "runs" / "run1" / "seed0")
    assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-2" and not folder.is_finished

    # The number of a job in its sweep is known to the processes of the job.
    swept = run(tmp_path, "-m", *overrides, "name=run${hydra:job.num}", "distributed.num_processes=0,2")
    assert swept.returncode == 1  # the first job's
    errors = [line for line in swept.stderr.splitlines() if line.startswith("error")]
    assert errors == ["error: distributed.num_processes=0: expected at least 1"]
    assert swept.stdout.count("run1: seed 0, 4 steps") == swept.stdout.count("figure: ") == 1
    assert len(read_json(folder.provenance)["resumes"]) == 1
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2, 3, 4]
    assert read_json(folder.summary)["num_items"] == 4


AGREEING = """
import os
from visual_r1 import distributed

def step():
    if os.environ["WRONG"] == "everywhere" or os.environ["WRONG"] == "in one" and distributed.rank() == 1:
        raise ValueError("the file is broken")

distributed.keep_quiet()
print("hello")
distributed.join(deepspeed=False)
try:
    distributed.together(step)
    if os.environ["WRONG"] == "in the program":
        raise RuntimeError("boom")
except ValueError as error:
    distributed.say_error(str(error))
except RuntimeError:
    if not distributed.fails_first():
        os._exit(1)
    raise
print("not reached")
"""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("everywhere", "error: the file is broken"),
        ("in one", "error: process 1: the file is broken"),
    ],
)
def test_what_is_wrong_in_some_process_is_said_once_and_stops_all(tmp_path, wrong, said):
    (tmp_path / "agreeing.py").write_text(AGREEING)
    done = with_torchrun(tmp_path, "agreeing.py", WRONG=wrong)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(said)
    assert done.stdout == "hello\n" and done.returncode != 0


def test_of_several_tracebacks_the_first_is_shown(tmp_path):
    (tmp_path / "agreeing.py").write_text(AGREEING)
    done = with_torchrun(tmp_path, "agreeing.py", WRONG="in the program")
    assert done.stderr.count("RuntimeError: boom") == 1 and done.returncode != 0


# What follows starts nothing.


@pytest.fixture
def joined(monkeypatch):
    """Makes this process believe that it is one of several."""

    def pretend(processes, *, rank=0):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", processes)):
            monkeypatch.setenv(name, str(value))

    return pretend


def test_torchrun_and_the_config_must_agree(joined):
    joined(2)
    distributed.check(processes=2, deepspeed=None)
    with pytest.raises(DistributedError, match=r"WORLD_SIZE=2 but distributed\.num_processes=3"):
        distributed.check(processes=3, deepspeed=None)


def test_processes_that_composed_different_configs_are_refused(monkeypatch):
    theirs = {"name": "a", "seed": 0}
    monkeypatch.setattr(distributed, "gathered", lambda ours: [theirs, ours])
    distributed.check_same(theirs)
    with pytest.raises(DistributedError, match="different values of name: "):
        distributed.check_same({"name": "b", "seed": 0})


def test_a_process_on_its_own_is_the_main_one(joined):
    assert distributed.is_main() and distributed.num_processes() == 1
    assert distributed.together(lambda: 3) == 3 and distributed.gathered("x") == ["x"]
    joined(4, rank=3)
    assert not distributed.is_main() and distributed.num_processes() == 4


ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("processes", "deepspeed", "message"),
    [
        (0, None, "distributed.num_processes=0: expected at least 1"),
        (4, None, "distributed.num_processes=4: this machine has 2 GPUs; set distributed.num_processes=2"),
        (2, {"zero_optimization": {"stage": 3}}, "distributed.deepspeed.zero_optimization.stage=3: expected at most 2"),
        (2, {**ZERO2, "gradient_clipping": 0.5}, "distributed.deepspeed.gradient_clipping=0.5: method.trl"),
        (2, {**ZERO2, "bf16": {"enabled": True}}, "distributed.deepspeed.bf16.enabled=True: scale.bf16 decides this"),
    ],
)
def test_what_cannot_start_is_refused_by_name(monkeypatch, processes, deepspeed, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "find_spec", lambda name: name)  # as where DeepSpeed is installed
    distributed.check(processes=2, deepspeed=ZERO2)
    with pytest.raises(DistributedError) as refused:
        distributed.check(processes=processes, deepspeed=deepspeed)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_missing_deepspeed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(DistributedError, match=r"pip install 'visual-r1\[deepspeed\]'"):
        distributed.check(processes=2, deepspeed=ZERO2)


@pytest.mark.parametrize(
    ("exit_codes", "message"),
    [
        (
            {0: 1, 1: -signal.SIGKILL},
            "process 1 of 4 was killed by SIGKILL",
        ),  # the other has lost it, and failed of that
        ({0: -signal.SIGTERM, 2: 1, 3: -signal.SIGTERM}, r"process 2 of 4 has failed \(exit code 1\)"),
        ({0: -signal.SIGTERM}, "process 0 of 4 was killed by SIGTERM"),
    ],
)
def test_the_process_that_died_first_is_named(exit_codes, message):
    with pytest.raises(DistributedError, match=message):
        raise distributed._reason(exit_codes, 4)
    assert isinstance(distributed._reason({**exit_codes, 1: distributed.USER_ERROR}, 4), AlreadySaidError)


TRL = {"num_generations": 8, "max_completion_length": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


ODD = {**TRL, "num_generations": 3}


def test_a_step_is_shared_out_among_the_processes(joined):
    joined(4)
    paper = build(compose_config(["scale=paper"]).method)
    assert paper._batch_arguments() == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("method", sorted(file.stem for file in (CONF / "method").glob("*.yaml")))
def test_every_recipe_can_be_shared_out_at_the_papers_scale(joined, method):
    cfg = compose_config(["scale=paper", f"method={method}"])
    joined(cfg.distributed.num_processes)
    assert cfg.distributed.num_processes == 4
    build(cfg.method)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Grpo(prompts_per_step=2, micro_batch_size=2, trl=ODD),
            "2 prompts x 3 completions do not divide among 4",
        ),
        (
            lambda: Grpo(prompts_per_step=2, micro_batch_size=2, trl=ODD),
            "set method.prompts_per_step to a multiple of 4",
        ),
        (lambda: Grpo(prompts_per_step=4, micro_batch_size=16, trl=TRL), "set method.micro_batch_size=8"),
        (lambda: Sft(examples_per_step=8, micro_batch_size=8, trl={}), "among 4 processes into micro-batches of 8"),
        (lambda: Sft(examples_per_step=8, micro_batch_size=8, trl={}), "set method.micro_batch_size=2"),
    ],
    ids=["completions", "prompts", "micro-batch", "examples", "micro-batch of examples"],
)
def test_a_step_that_cannot_be_shared_out_is_refused(joined, build, message):
    joined(4)
    with pytest.raises(ValueError) as refused:
        build()
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distributed=ddp"], "distributed.num_processes=2: this process is alone"),
        (["distributed=zero2", "model.dtype=bfloat16"], "model.dtype=bfloat16 scale.bf16=false"),
        (["+method.trl.deepspeed={}"], "method.trl.deepspeed: the framework sets this itself"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, checkpoint, overrides, message):
    with pytest.raises(ValueError) as refused:
        prepare(compose_config([*COMMON, f"model.path={checkpoint('base')}", f"runs_dir={tmp_path}", *overrides]))
    assert message in str(refused.value)


def test_an_evaluation_takes_one_process(tmp_path, checkpoint):
    overrides = [*COMMON, f"model.path={checkpoint('base')}", f"runs_dir={tmp_path}", "method=eval", "distributed=ddp"]
    assert prepare(compose_config(overrides)).name == "base-eval"
