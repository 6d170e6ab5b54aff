"""A step samples on until enough groups can teach something, learns from those, and counts all that it sampled."""

from __future__ import annotations

import shutil
import sys
from statistics import fmean
from typing import Any

import pytest

from visual_r1.config import build, compose_config
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.resampling import Batch, Group, Resampling, collect, fresh_prompts
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.trl_function import TrlFunction
from visual_r1.rewards.weighted import WeightedReward

NAN = float("nan")


def group(index, rewards, rollouts=()):
    return Group(index=index, completions=(), rollouts=rollouts, scores=(), rewards=tuple(rewards))


def gather(informative, *, min_informative, max_attempts=10, batches=((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))):
    """The batch of a step to which the rows named in `informative` are informative."""
    resampling = Resampling(by="reward", min_informative=min_informative, max_attempts=max_attempts)
    asked = []

    def roll_out(rows):
        asked.append(tuple(rows))
        return [group(row, (0.0, float(row in informative))) for row in rows]

    batch = collect(resampling, batches[0], batches[1:], roll_out)
    assert [one.index for one in batch.sampled] == [row for rows in asked for row in rows]
    assert batch.num_attempts == len(asked)
    return batch


def rows_of(groups):
    return [one.index for one in groups]


@pytest.mark.parametrize(
    ("informative", "min_informative", "max_attempts", "attempts", "trained"),
    [
        pytest.param({1, 3}, 0.5, 10, 1, [1, 3, 0, 2], id="enough at once: the whole batch, informative ones first"),
        pytest.param({1, 5}, 0.5, 10, 2, [1, 5, 4, 6], id="earlier finds count; the last attempt fills up"),
        pytest.param({1, 3, 5, 6, 7}, 1.0, 10, 2, [1, 3, 5, 6], id="more than fit: the first that were found"),
        pytest.param({2}, 0.5, 2, 2, [2, 4, 5, 6], id="the bound ends it with what there is"),
        pytest.param({2}, 0.5, 1, 1, [2, 0, 1, 3], id="one attempt is plain sampling"),
        pytest.param(set(), 0.5, 10, 3, [8, 9, 10, 11], id="no more prompts"),
        pytest.param({1}, 0.26, 10, 3, [1, 8, 9, 10], id="a share is not rounded down"),
    ],
)
def test_a_step_learns_from_the_groups_that_it_found(informative, min_informative, max_attempts, attempts, trained):
    batch = gather(informative, min_informative=min_informative, max_attempts=max_attempts)
    assert (batch.num_attempts, rows_of(batch.trained)) == (attempts, trained)
    assert batch.gradient_share == len(informative & set(trained)) / 4


def test_the_share_is_that_of_what_is_learned_from():
    trained = tuple(group(row, (0.0, float(row < 3))) for row in range(4))
    assert Batch(sampled=trained * 5, trained=trained, num_attempts=5).gradient_share == 0.75


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 1.0, 0.0], True),
        ([1.0, 1.0, 1.0], False),
        ([0.3, 0.1 + 0.2], False),  # equal but for rounding
        ([0.0, 1e-4], True),
        ([NAN, 1.0, 1.0], False),
        ([NAN, 1.0, 0.0], True),
        ([NAN, NAN], False),
    ],
)
def test_by_reward_a_group_is_informative_where_rewards_differ(rewards, expected):
    resampling = Resampling(by="reward", min_informative=1.0, max_attempts=1)
    assert resampling.is_informative(group(0, rewards)) is expected


@pytest.mark.parametrize(("answers", "expected"), [("BB", False), ("AA", False), ("AB", True), ("A?", False)])
@pytest.mark.parametrize("rewards", [(1.0, 1.0), (1.0, 2.0)])
def test_by_accuracy_a_group_is_informative_where_answers_are_right_and_wrong(rollout, answers, expected, rewards):
    resampling = Resampling(by="accuracy", min_informative=1.0, max_attempts=1)
    rollouts = tuple(rollout(f"<answer>{answer}</answer>") for answer in answers)
    assert resampling.is_informative(group(0, rewards, rollouts)) is expected


def test_fresh_prompts_are_new_to_the_step_and_decided_by_the_seed():
    def drawn(seed):
        return list(fresh_prompts([3, 4, 5], num_examples=50, max_attempts=6, seed=seed))

    batches = drawn(0)
    assert all(len(rows) == 3 for rows in batches) and len(batches) >= 5  # as many as the attempts can use
    used = [row for rows in batches for row in rows]
    assert len(set(used)) == len(used) and not {3, 4, 5} & set(used) and set(used) <= set(range(50))
    assert drawn(0) == batches != drawn(1)


def test_fresh_prompts_end_with_the_data():
    batches = list(fresh_prompts([0, 1], num_examples=7, max_attempts=20, seed=0))
    assert len(batches) == 2 and {row for rows in batches for row in rows} <= {2, 3, 4, 5, 6}
    assert list(fresh_prompts([0, 1], num_examples=3, max_attempts=20, seed=0)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("by", "format"), ("min_informative", 0.0), ("min_informative", 1.5), ("max_attempts", 0)],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    arguments: dict[str, Any] = {"by": "reward", "min_informative": 0.4, "max_attempts": 20}
    with pytest.raises(ValueError, match=rf"^method\.resampling\.{name}={value}: "):
        Resampling(**{**arguments, name: value})


PROMPTS, GROUP = 4, 4


def one_in_four(rollout):
    """A reward by length for every fourth example; the others earn nothing, whatever they say."""
    is_informative = int(rollout.example.id.rpartition("/")[2]) % 4 == 0
    return LengthBonus(per_token=0.07)(rollout) * is_informative


REWARDS = (
    WeightedReward(name="one_in_four", weight=2.0, function=one_in_four),
    WeightedReward(name="watched", weight=0.0, function=LengthBonus(per_token=0.05)),
)


@pytest.fixture
def train(load, make_context, trl_arguments, listening_engine):
    """Trains with resampling; the context holds what was recorded."""

    def run(context=None, *, max_steps=1, min_informative=0.75, max_attempts=20, **replaced):
        context = context or make_context(**{"rewards": REWARDS, "engine": listening_engine, **replaced})
        method = Grpo(
            prompts_per_step=PROMPTS,
            micro_batch_size=8,
            trl=trl_arguments(num_generations=GROUP, max_steps=max_steps),
            resampling=Resampling(by="reward", min_informative=min_informative, max_attempts=max_attempts),
        )
        method.train(load(), context)
        return context

    return run


def test_curves_and_rollouts_are_those_learned_from_and_all_that_was_sampled_is_counted(train, listening_engine):
    context = train()
    curves, rows = context.tracker.steps[1], context.tracker.rollouts[1, "train"]
    calls = listening_engine.groups
    # Three groups of four have to be found, one example in four can be one.
    assert curves["groups/num_attempts"] == len(calls) > 1
    assert curves["groups/num_prompts"] == sum(map(len, calls)) == PROMPTS * len(calls)
    informative = [row for row in rows if int(row["example_id"].rpartition("/")[2]) % 4 == 0]
    assert len(rows) == PROMPTS * GROUP and len(informative) >= 3 * GROUP
    assert all(abs(row["advantage"]) > 0 for row in informative[:GROUP])
    assert curves["frac_reward_zero_std"] == 1 - len(informative) / len(rows)
    assert curves["reward"] == pytest.approx(fmean(2 * row["scores"]["one_in_four"] for row in rows))
    assert curves["completions/mean_length"] == pytest.approx(fmean(row["num_tokens"] for row in rows))
    assert curves["rewards/watched/mean"] == pytest.approx(fmean(row["scores"]["watched"] for row in rows))
    sampled = [completion for groups in calls for group in groups for completion in group]
    lengths = [len(completion.token_ids) for completion in sampled]
    assert curves["sampled/completions/mean_length"] == pytest.approx(fmean(lengths))
    assert curves["num_tokens"] == sum(lengths) + sum(len(completion.prompt_ids) for completion in sampled)
    assert 0 < curves["sampled/reward"] < curves["reward"]
    assert curves["groups/informative"] == pytest.approx(
        len(informative) / GROUP / curves["groups/num_prompts"], abs=1 / curves["groups/num_prompts"]
    )
    assert {"sampled/accuracy", "sampled/length/incorrect/mean"} <= set(curves)
    assert len({row["example_id"] for row in rows}) == PROMPTS
    assert 0 < curves["parity/logp_difference/max"] < 2e-4  # the completions stand with their own prompts


def test_without_a_second_attempt_the_rollouts_are_those_of_plain_grpo(train, load, make_context, trl_arguments):
    context = train(max_attempts=1)
    plain = make_context(rewards=REWARDS)
    Grpo(prompts_per_step=PROMPTS, micro_batch_size=8, trl=trl_arguments(num_generations=GROUP)).train(load(), plain)
    chosen, given = (one.tracker.rollouts[1, "train"] for one in (context, plain))
    assert sorted(row["completion"] for row in chosen) == sorted(row["completion"] for row in given)
    assert {row["example_id"] for row in chosen} == {row["example_id"] for row in given}
    for name in ("reward", "num_tokens", "completions/mean_length", "accuracy"):
        assert context.tracker.steps[1][name] == pytest.approx(plain.tracker.steps[1][name])


def test_an_interrupted_training_goes_on_with_the_same_prompts(train):
    context = train(max_steps=2, save_every_steps=1)
    expected, rows = context.tracker.steps.pop(2), context.tracker.rollouts.pop((2, "train"))
    assert expected["groups/num_attempts"] > 1
    shutil.rmtree(context.folder.checkpoints / "checkpoint-2")
    context.tracker.steps.clear()
    train(context, max_steps=2)
    assert list(context.tracker.steps) == [2]
    timeless = {name: value for name, value in expected.items() if "time" not in name}
    assert {name: context.tracker.steps[2][name] for name in timeless} == timeless
    shown = [(row["example_id"], row["completion"], row["advantage"]) for row in context.tracker.rollouts[2, "train"]]
    assert shown == [(row["example_id"], row["completion"], row["advantage"]) for row in rows]


def test_a_users_function_scores_each_completion_once(train, listening_engine, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(
        "seen = []\n"
        "def score(prompts, completions, completion_ids, question, **columns):\n"
        "    seen.extend(zip(prompts, completions, completion_ids, question))\n"
        "    return [float(len(ids) % 2) for ids in completion_ids]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewards = (*REWARDS, WeightedReward(name="users", weight=0.0, function=TrlFunction("counting.score")))
    context = train(rewards=rewards)
    seen = sys.modules.pop("counting").seen
    sampled = [completion for groups in listening_engine.groups for group in groups for completion in group]
    assert [ids for _, _, ids, _ in seen] == [list(completion.token_ids) for completion in sampled]
    for prompt, completion, _, question in seen:
        assert question in next(part["text"] for part in prompt[0]["content"] if part["type"] == "text")
        assert completion[0]["role"] == "assistant"
    rows = context.tracker.rollouts[1, "train"]
    assert [row["scores"]["users"] for row in rows] == [float(row["num_tokens"] % 2) for row in rows]


@pytest.mark.parametrize(
    ("method", "by", "min_informative", "max_attempts"), [("gpg", "reward", 0.4, 20), ("dapo", "accuracy", 1.0, 10)]
)
def test_the_recipes_resample(method, by, min_informative, max_attempts):
    found = build(compose_config([f"method={method}"]).method).resampling
    assert found == Resampling(by=by, min_informative=min_informative, max_attempts=max_attempts)
    assert build(compose_config(["method=grpo"]).method).resampling is None
