"""SFT, then GRPO on what came out of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from visual_r1 import manifest
from visual_r1.methods.chain import Chain, last_kept_step
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.sft import Sft
from visual_r1.models import ModelSource, load_policy, saved_steps
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.run_folder import RunFolder

SFT_STEPS, GRPO_STEPS = 3, 2


class Never:
    """A stage that must not run."""

    def check(self):
        pass

    def train(self, policy, context):
        raise AssertionError("a finished stage was run again")


@pytest.fixture(scope="module")
def stages(trl_arguments):
    sft = {"learning_rate": 1e-3, "max_steps": SFT_STEPS, "bf16": False}
    return {
        "sft": Sft(examples_per_step=4, micro_batch_size=4, trl=sft),
        "grpo": Grpo(
            prompts_per_step=2,
            micro_batch_size=8,
            trl=trl_arguments(beta=0.04, max_steps=GRPO_STEPS, learning_rate=0.3),
        ),
    }


@pytest.fixture(scope="module")
def run(load, make_context, stages):
    context = make_context(
        rewards=(WeightedReward(name="length_bonus", weight=1.0, function=LengthBonus(per_token=0.1)),)
    )
    policy, num_steps = Chain(stages=stages).train(load(), context)
    return policy, num_steps, context


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_reference_policy_is_the_one_after_sft(run, checkpoint):
    _, _, context = run
    first, second = (context.tracker.steps[SFT_STEPS + step]["kl"] for step in (1, 2))
    assert abs(first) < 1e-6 < second
    start, tuned = weights(checkpoint("base")), weights(context.folder.path / "stages" / "sft" / "model")
    assert start.keys() == tuned.keys() and not any(torch.equal(start[name], tuned[name]) for name in start)
    # Two clipped steps of length 0.3 lead at most 0.6 away from where RL began.
    final = weights(context.folder.path / "stages" / "grpo" / "model")
    assert 0 < distance(final, tuned) < 0.61 < distance(final, start)


def distance(one, other):
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


def test_the_stages_share_one_axis_of_steps(run):
    _, num_steps, context = run
    assert num_steps == SFT_STEPS + GRPO_STEPS
    curves = context.tracker.steps
    assert list(curves) == list(range(num_steps + 1))
    assert ["reward" in curves[step] for step in curves] == [False] * (SFT_STEPS + 1) + [True] * GRPO_STEPS
    assert all("probe/accuracy" in curves[step] for step in (0, SFT_STEPS, num_steps))


def test_the_policy_is_the_one_that_the_last_stage_saved(run, load):
    policy, _, context = run
    folder = context.folder.path / "stages" / "grpo" / "model"
    saved = load_policy(ModelSource(name="saved", path=str(folder))).model.state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in policy.model.state_dict().items())
    assert not torch.equal(saved["lm_head.weight"], load("base").model.state_dict()["lm_head.weight"])
    assert saved_steps(context.folder.path / "stages" / "grpo" / "model") == GRPO_STEPS


def test_a_finished_stage_is_not_run_again(run, load, stages):
    policy, num_steps, context = run
    chain = Chain(stages=dict.fromkeys(stages, Never()))
    again, num_steps_again = chain.train(load(), context)
    assert num_steps_again == num_steps
    theirs = policy.model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in again.model.state_dict().items())
    with pytest.raises(AssertionError, match="run again"):
        chain.train(load(), replace(context, folder=RunFolder(context.folder.path / "elsewhere")))


def test_an_interrupted_chain_keeps_its_whole_stages(tmp_path):
    folder = RunFolder(tmp_path)
    assert last_kept_step(folder) == -1
    sft, grpo = (RunFolder(tmp_path / "stages" / name) for name in ("sft", "grpo"))
    reach(sft, 2)
    assert last_kept_step(folder) == 2
    sft.model.mkdir()
    (sft.model / "visual_r1.json").write_text('{"style": "base", "prompt": "clean", "num_steps": 3}')
    assert last_kept_step(folder) == 3
    reach(grpo, 10)
    assert last_kept_step(folder) == 13


def test_an_interrupted_run_of_one_method_goes_on_from_its_checkpoint(tmp_path):
    reach(RunFolder(tmp_path), 4)
    reach(RunFolder(tmp_path), 6)
    assert last_kept_step(RunFolder(tmp_path)) == 6


def reach(folder, step):
    checkpoint = folder.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    manifest.seal(checkpoint, {})


def test_a_chain_of_nothing_is_refused(trl_arguments):
    with pytest.raises(ValueError, match=r"method\.stages is empty"):
        Chain(stages={}).check()
    wrong = Sft(examples_per_step=4, micro_batch_size=4, trl={"zzz": 1})
    with pytest.raises(ValueError, match="zzz"):
        Chain(stages={"sft": wrong}).check()
