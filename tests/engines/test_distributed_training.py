"""Several processes train as one: the numbers of one process, one record, and a run that can be resumed.

Two real processes, over gloo, in each way of sharing the work. They are given the completions that one process is
given, so that what differs is rounding: of sums in another order. The largest relative differences that were seen,
over the experiments below, are 2.8e-4 in the KL, a small number that two larger ones leave, and 3.4e-4 in the loss that
consists of it; 8e-5 in the gradient's norm; 4e-5 elsewhere; and 1.2e-7 in a weight. The tolerances are four to eight
times that.
"""

from __future__ import annotations

import json
from statistics import fmean, stdev

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import COMMON, GROUP, PROMPTS, STEPS, untimed, with_torchrun
from tests.replaying import SECONDS_LATE
from tests.replaying import main as train_here
from visual_r1.models import ModelSource, load_policy
from visual_r1.run_folder import RunFolder

# Gradient descent, whose steps are as long as the gradient: Adam would hide that, and enlarge the rounding of zeros.
PLAIN = ("++{}.optim=sgd", "{}.learning_rate=0.003", "{}.lr_scheduler_type=constant")
LENGTH = ("+reward/term@reward.terms.length=length_bonus", "reward.terms.length.function.per_token=0.1")
TRL, SFT_TRL, GRPO_TRL = "method.trl", "method.stages.sft.trl", "method.stages.grpo.trl"


def plain(node):
    return [argument.format(node) for argument in PLAIN]


EXPERIMENTS = {
    "grpo": (*plain(TRL), *LENGTH, "method.trl.beta=0.04"),
    "parts": (*plain(TRL), *LENGTH, "method.trl.beta=0.04"),  # grpo in more micro-batches
    # Of the first and the last step's completions one process needs two passes and the other one.
    "budget": (*plain(TRL), *LENGTH, "method.trl.beta=0.04", "method.tokens_per_micro_batch=255"),
    "sft": (*plain(TRL), "method=sft"),
    "lora": (*plain(TRL), *LENGTH, "method.trl.beta=0.04", "adapter=lora", "method.trl.learning_rate=0.03"),
    "chain": ("method=sft_then_grpo", *plain(SFT_TRL), *plain(GRPO_TRL), *LENGTH, f"{GRPO_TRL}.beta=0.04"),
    "straddling": (*plain(TRL), *LENGTH, "scale.prompts_per_step=3", "method.trl.beta=0.0"),
    "resumed": (*LENGTH, "method.trl.beta=0.04"),
}
TOLERANCE = {"kl": 2e-3, "loss": 2e-3}
IN_ONE = ("grpo", "sft", "lora", "chain")
# By default ZeRO-3 keeps weights of up to 1e5 values whole, and lets go of no other before 1e9 are: all of nano's.
NOTHING_STAYS_WHOLE = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
MICRO_BATCH = {  # of one process, of each of two
    "parts": (16, 4),  # two micro-batches where one process has one
    "straddling": (12, 6),
    "resumed": (16, 4),
}


def overrides_of(name, checkpoint, runs, *, processes):
    return [
        *COMMON,
        *EXPERIMENTS[name],
        f"name={name}",
        f"runs_dir={runs}",
        f"model.path={checkpoint}",
        f"scale.micro_batch_size={MICRO_BATCH.get(name, (16, 8))[processes - 1]}",
        f"scale.sft_micro_batch_size={(8, 2)[processes - 1]}",
    ]


@pytest.fixture(scope="module")
def one(tmp_path_factory, checkpoint):
    """The experiments in this process, by name."""
    runs = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train_here([overrides_of(name, checkpoint("base"), runs, processes=1) for name in IN_ONE])
    return {name: RunFolder(runs / name / "seed0") for name in IN_ONE}


@pytest.fixture(scope="module", params=["ddp", "zero2", "zero3", "fsdp"])
def two(request, tmp_path_factory, checkpoint):
    """The experiments in two processes, by name; ``resumed`` was cut off at a checkpoint twice, ``whole`` was not."""
    path = tmp_path_factory.mktemp(request.param)
    chosen = [f"distributed={request.param}", "distributed.num_processes=2"]
    if request.param == "zero3":
        chosen += [f"++distributed.deepspeed.zero_optimization.stage3_{limit}=0" for limit in NOTHING_STAYS_WHOLE]
    names = (*EXPERIMENTS, "resumed", "resumed")
    experiments = [[*overrides_of(name, checkpoint("base"), path, processes=2), *chosen] for name in names]
    file = path / "experiments.json"
    file.write_text(json.dumps(experiments))
    done = with_torchrun(path, "-m", "tests.replaying", file)
    assert done.returncode == 0, done.stderr
    return {name: RunFolder(path / name / "seed0") for name in (*EXPERIMENTS, "whole")}


@pytest.mark.parametrize("name", IN_ONE)
def test_two_processes_learn_what_one_does(one, two, name):
    """The probe is sampled by the policy itself, so that the weights it samples with are these, too."""
    ours, theirs = two[name].read_metrics(), one[name].read_metrics()
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert {row["step"] for row in ours} == set(range((2 if name == "chain" else 1) * STEPS + 1))
    for row, other in zip(untimed(ours), untimed(theirs), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=TOLERANCE.get(key, 4e-4), abs=1e-6), (row["step"], key)

    assert_same_weights(two[name], one[name])


def test_the_step_does_not_depend_on_the_micro_batches_of_a_process(one, two):
    assert_same_weights(two["parts"], one["grpo"])


def test_a_token_budget_changes_neither_the_step_nor_its_curves(one, two):
    assert_same_weights(two["budget"], one["grpo"])
    for row, other in zip(*(untimed(two[name].read_metrics()) for name in ("budget", "grpo")), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=TOLERANCE.get(key, 4e-4), abs=1e-6), (row["step"], key)


def assert_same_weights(ours, theirs):
    expected = load_file(theirs.model / "model.safetensors")
    weights = load_file(ours.model / "model.safetensors")
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-6, msg=key)


def test_the_policy_moves(two, checkpoint):
    start = load_file(checkpoint("base") / "model.safetensors")
    for name in IN_ONE:
        moved = load_file(two[name].model / "model.safetensors")
        assert max((moved[key] - start[key]).abs().max() for key in start) > 1e-4


def test_the_reference_policy_is_the_starting_point(two):
    """Split or whole, it is what the first step's policy is: otherwise the KL would not begin at 0."""
    kl = [row["kl"] for row in two["grpo"].read_metrics()[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-3


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
    """Cut back to its first checkpoint, and once more to the last, whose weights alone were then to be saved."""
    assert untimed(two["resumed"].read_metrics()) == untimed(two["whole"].read_metrics())
    ours, theirs = (load_file(two[name].model / "model.safetensors") for name in ("resumed", "whole"))
    assert all(torch.equal(weight, theirs[key]) for key, weight in ours.items())


def test_one_process_writes_and_another_loads(two):
    for name in EXPERIMENTS:
        names = {path.name for path in two[name].path.iterdir() if not path.name.startswith(".")}
        kept = {"stages"} if name == "chain" else {"checkpoints"}
        assert names == {"config.yaml", "provenance.json", "metrics.jsonl", "completions", "model"} | kept
        load_policy(ModelSource(name=name, path=str(two[name].model)))
