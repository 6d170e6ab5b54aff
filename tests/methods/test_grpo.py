"""Invariant 3: a completion is judged within its own group; and what is recorded is what was computed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from visual_r1.examples import Rollout
from visual_r1.methods.grpo import Grpo, RolloutGrpoTrainer
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.trl_function import TrlFunction
from visual_r1.rewards.weighted import WeightedReward

PROMPTS, GROUP = 4, 4


@dataclass(frozen=True)
class ByExample:
    """0 to 0.4 by the length, and more for some examples, which a mean over all prompts would not take away."""

    def __call__(self, rollout: Rollout) -> float:
        index = int(rollout.example.id.rpartition("/")[2])
        return 0.05 * min(rollout.num_tokens, 8) + 0.1 * (index % 7)


REWARDS = (
    WeightedReward(name="by_example", weight=2.0, function=ByExample()),
    WeightedReward(name="shortness", weight=-0.5, function=LengthBonus(per_token=0.03)),
    WeightedReward(name="watched", weight=0.0, function=ByExample()),
)


@dataclass(frozen=True)
class Trained:
    """One run of GRPO: its weights, its curves and its rollouts."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    tracker: Any

    @property
    def curves(self):
        return self.tracker.steps

    @property
    def rows(self):
        """The training rollouts of the first step."""
        return self.tracker.rollouts[1, "train"]


@pytest.fixture(scope="module")
def train(load, make_context, trl_arguments):
    def run(*, micro_batch_size=8, rewards=REWARDS, kind="base", seed=0, **arguments):
        policy = load(kind)
        before = {name: weight.detach().cpu().clone() for name, weight in policy.model.named_parameters()}
        context = make_context(rewards=rewards, seed=seed)
        method = Grpo(
            prompts_per_step=PROMPTS,
            micro_batch_size=micro_batch_size,
            trl=trl_arguments(num_generations=GROUP, **arguments),
        )
        method.check()
        trained, num_steps = method.train(policy, context)
        assert num_steps == method.trl["max_steps"]
        after = {name: weight.detach().cpu().clone() for name, weight in trained.model.named_parameters()}
        return Trained(before=before, after=after, tracker=context.tracker)

    return run


@pytest.fixture(scope="module")
def trained(train):
    return train()


def groups_of(rows):
    assert [row["group"] for row in rows] == [number for number in range(PROMPTS) for _ in range(GROUP)]
    groups = [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]
    for group in groups:
        assert len({row["example_id"] for row in group}) == 1
    assert len({group[0]["example_id"] for group in groups}) == PROMPTS
    return groups


def reward_of(row):
    return sum(reward.weight * row["scores"][reward.name] for reward in REWARDS)


@pytest.mark.parametrize("micro_batch_size", [2, 4, 8, 16])
@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_advantages_are_relative_to_the_own_group(train, trained, micro_batch_size, scale_rewards):
    is_shared = micro_batch_size == 8 and scale_rewards == "group"
    run = trained if is_shared else train(micro_batch_size=micro_batch_size, scale_rewards=scale_rewards)
    means = []
    for group in groups_of(run.rows):
        rewards = [reward_of(row) for row in group]
        means.append(fmean(rewards))
        scale = stdev(rewards) + 1e-4 if scale_rewards == "group" else 1.0  # 1e-4 is trl's
        for row, reward in zip(group, rewards, strict=True):
            assert row["advantage"] == pytest.approx((reward - means[-1]) / scale, abs=1e-4)
    assert max(means) - min(means) > 0.01  # the groups differ, so mixing them would show
    assert any(abs(row["advantage"]) > 0.01 for row in run.rows)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_step_does_not_depend_on_the_micro_batch_size(train, loss_type):
    # Without clipping, which would hide a gradient of the wrong length.
    unclipped = {"loss_type": loss_type, "max_grad_norm": 0.0, "learning_rate": 1e-3}
    whole, in_parts = (train(micro_batch_size=size, **unclipped) for size in (16, 2))
    assert [row["completion"] for row in whole.rows] == [row["completion"] for row in in_parts.rows]
    moved = 0.0
    for name, weight in whole.after.items():
        torch.testing.assert_close(in_parts.after[name], weight, rtol=0, atol=1e-5, msg=name)
        moved = max(moved, (weight - whole.before[name]).abs().max().item())
    assert moved > 1e-3


def test_parameters_move_and_only_where_there_is_an_advantage(train, trained):
    assert {name for name in trained.before if not torch.equal(trained.before[name], trained.after[name])} == set(
        trained.before
    )
    equal = train(rewards=(WeightedReward(name="same", weight=1.0, function=lambda _rollout: 0.5),))
    assert {row["advantage"] for row in equal.rows} == {0.0}
    for name, weight in equal.before.items():
        assert torch.equal(equal.after[name], weight)


def test_what_is_rewarded_becomes_likelier(train):
    shorter = WeightedReward(name="shortness", weight=-1.0, function=LengthBonus(per_token=0.1))
    run = train(rewards=(shorter,), max_steps=6, optim="adamw_torch", learning_rate=1e-2)
    lengths = [fmean(row["num_tokens"] for row in run.tracker.rollouts[step, "train"]) for step in range(1, 7)]
    assert fmean(lengths[-2:]) < fmean(lengths[:2]) - 1


def test_engine_and_trainer_agree_on_logps(train, trained):
    assert 0 < trained.curves[1]["parity/logp_difference/mean"] <= trained.curves[1]["parity/logp_difference/max"]
    assert trained.curves[1]["parity/logp_difference/max"] < 2e-4
    cooler = train(temperature=0.7, top_k=20, kind="instruct", micro_batch_size=4)
    assert cooler.curves[1]["parity/logp_difference/max"] < 2e-4  # log-probs are tens, float32 has seven digits


def test_parity_is_measured_before_the_first_update_only(train):
    reused = train(num_iterations=2, max_steps=2, learning_rate=1.0)
    assert reused.curves[1]["parity/logp_difference/max"] < 1e-4
    assert "parity/logp_difference/max" not in reused.curves[2]


def test_curves_are_the_means_of_the_recorded_rollouts(trained):
    curves, rows = trained.curves[1], trained.rows
    for reward in REWARDS:
        assert curves[f"rewards/{reward.name}/mean"] == pytest.approx(fmean(row["scores"][reward.name] for row in rows))
    assert curves["reward"] == pytest.approx(fmean(map(reward_of, rows)))
    assert curves["completions/mean_length"] == pytest.approx(fmean(row["num_tokens"] for row in rows))
    assert curves["completions/clipped_ratio"] == pytest.approx(fmean(row["is_truncated"] for row in rows))
    assert curves["accuracy"] == pytest.approx(fmean(row["correct"] for row in rows))
    assert curves["length/incorrect/mean"] == pytest.approx(
        fmean(row["num_tokens"] for row in rows if not row["correct"])
    )
    correct = [{row["correct"] for row in group} for group in groups_of(rows)]
    assert curves["groups/all_wrong"] == pytest.approx(fmean(group == {False} for group in correct))
    deviations = [stdev(map(reward_of, group)) for group in groups_of(rows)]
    assert curves["frac_reward_zero_std"] == pytest.approx(fmean(one < 1e-6 for one in deviations))


def test_scores_are_those_of_the_recorded_completion(trained):
    for row in trained.rows:
        index = int(row["example_id"].rpartition("/")[2])
        expected = 0.05 * min(row["num_tokens"], 8) + 0.1 * (index % 7)
        assert row["scores"]["by_example"] == pytest.approx(expected) == row["scores"]["watched"]
        assert row["scores"]["shortness"] == pytest.approx(min(1.0, 0.03 * row["num_tokens"]))


def test_a_term_of_weight_0_has_a_curve_and_no_effect(train, trained):
    without = train(rewards=REWARDS[:2])
    assert "rewards/watched/mean" in trained.curves[1] and "rewards/watched/mean" not in without.curves[1]
    for name, weight in without.after.items():
        assert torch.equal(trained.after[name], weight)


def test_the_probe_is_there_from_step_0(trained):
    assert "probe/accuracy" in trained.curves[0] and "probe/accuracy" in trained.curves[1]
    assert "loss" not in trained.curves[0] and "loss" in trained.curves[1]


def test_a_seed_decides_the_run(train, trained):
    again, other = train(), train(seed=1)
    assert [row["completion"] for row in again.rows] == [row["completion"] for row in trained.rows]
    assert [row["example_id"] for row in other.rows] != [row["example_id"] for row in trained.rows]
    for name, weight in trained.after.items():
        assert torch.equal(again.after[name], weight)


USER_MODULE = """
calls = []

def plain(prompts, completions, completion_ids, solution, question, **columns):
    calls.append({"prompts": prompts, "completions": completions, "completion_ids": completion_ids,
                  "solution": solution, "question": question, **columns})
    return [float(len(ids)) if letter != "A" else None for ids, letter in zip(completion_ids, solution)]

async def waiting(completion_ids, **columns):
    return [10.0 * len(ids) for ids in completion_ids]
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_rewards.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_rewards"
    sys.modules.pop("user_rewards", None)


def test_a_function_written_for_trl_works_unchanged(train, user_module):
    rewards = tuple(
        WeightedReward(name=name, weight=1.0, function=TrlFunction(f"{user_module}.{name}"))
        for name in ("plain", "waiting")
    )
    run = train(rewards=rewards)
    [call] = sys.modules[user_module].calls
    rows = run.rows
    assert len(call["completions"]) == PROMPTS * GROUP
    for index, row in enumerate(rows):
        assert call["solution"][index] == row["solution"] and call["question"][index] == row["question"]
        assert call["completions"][index] == [{"role": "assistant", "content": row["completion"]}]
        assert len(call["completion_ids"][index]) == row["num_tokens"]
        text = next(part["text"] for part in call["prompts"][index][0]["content"] if part["type"] == "text")
        assert row["question"] in text
        assert row["scores"]["waiting"] == 10.0 * row["num_tokens"]
        if row["solution"] != "A":
            assert row["scores"]["plain"] == row["num_tokens"]
    assert {"log_metric", "log_extra", "trainer_state", "choices", "images"} <= call.keys()
    assert not {"rollout", "example"} & call.keys()
    assert run.curves[1]["rewards/plain/mean"] == pytest.approx(
        fmean(row["num_tokens"] for row in rows if row["solution"] != "A")
    )


def method(trl_arguments, **arguments):
    return Grpo(prompts_per_step=4, micro_batch_size=8, trl=trl_arguments(**arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"betta": 0.1}, "method.trl.betta: GRPOConfig has no such argument; did you mean beta?"),
        ({"zzz": 1}, "method.trl.zzz: GRPOConfig has no such argument"),
        ({"beta": "high"}, "method.trl.beta='high': expected float"),
        ({"max_steps": 1.5}, "method.trl.max_steps=1.5: expected int"),
        ({"bf16": 1}, "method.trl.bf16=1: expected bool"),
        ({"num_iterations": True}, "method.trl.num_iterations=True: expected int"),
        ({"num_generations": "eight"}, "method.trl.num_generations='eight': expected int"),
        ({"seed": 1}, "method.trl.seed: the framework sets this itself"),
        ({"per_device_train_batch_size": 4}, "method.trl.per_device_train_batch_size: the framework sets this itself"),
        ({"min_p": 0.1}, "method.trl.min_p: our rollout engines do not use it"),
        ({"repetition_penalty": 1.1}, "method.trl.repetition_penalty: our rollout engines do not use it"),
        ({"loss_type": "gpro"}, "method.trl.loss_type=gpro: unknown, expected one of ['grpo'"),
        ({"lr_scheduler_type": "linnear"}, "linnear"),
        ({"num_generations": 1}, "method.trl.num_generations=1: a group needs at least 2"),
        ({"num_generations": 3}, "4 prompts x 3 completions do not divide into micro-batches of 8"),
    ],
    ids=lambda value: "-".join(f"{key}={one}" for key, one in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_of_trl_is_refused_by_name(trl_arguments, arguments, message):
    method(trl_arguments).check()
    with pytest.raises(ValueError) as refused:
        method(trl_arguments, **arguments).check()
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [{"min_p": None}, {"min_p": 0.0}, {"repetition_penalty": 1.0}])
def test_values_that_change_nothing_are_welcome(trl_arguments, given):
    method(trl_arguments, **given).check()


def test_the_fix_that_a_message_names_works(trl_arguments):
    with pytest.raises(ValueError, match=r"set method\.micro_batch_size=6"):
        Grpo(prompts_per_step=4, micro_batch_size=7, trl=trl_arguments(num_generations=3))
    Grpo(prompts_per_step=4, micro_batch_size=6, trl=trl_arguments(num_generations=3)).check()


def test_the_trainer_leaves_no_model_card(load, make_context, trl_arguments):
    context = make_context()
    trainer = RolloutGrpoTrainer(policy=load(), context=context, method=method(trl_arguments))
    trainer.create_model_card()
    assert not list(context.folder.path.rglob("README.md"))
