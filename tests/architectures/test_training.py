"""Invariants 2 and 5 on the true architectures: one step of each kind moves what it may move, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from visual_r1.examples import Rollout
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.sft import Sft
from visual_r1.models import Adapter
from visual_r1.rewards.weighted import WeightedReward

# Qwen2-VL's two checkpoints differ only in how they are asked.
FAMILIES = ("qwen2_vl_2b", "qwen2_5_vl_3b_instruct", "qwen3_vl_2b_instruct")
LORA = Adapter(rank=4, alpha=8, dropout=0.0, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)")


@dataclass
class Alternating:
    """1, 0, 1, 0: every group of two has something to learn, whatever its completions are."""

    scores: list[float] = field(default_factory=list)

    def __call__(self, rollout: Rollout) -> float:
        self.scores.append(float(len(self.scores) % 2))
        return self.scores[-1]


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    still: set[str]
    moved: set[str]
    curves: dict[str, float]
    policy: object


@pytest.fixture(scope="module")
def train(make_context, trl_arguments, example):
    """One step from a policy, by GRPO or SFT, on one and two images; gradient checkpointing is on."""
    examples = [example((84, 56), question="Nearer?"), example((56, 56), (84, 84), question="Nearer?")]

    def run(policy, *, method="grpo", learning_rate=1.0):
        before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
        rewards = (WeightedReward(name="alternating", weight=1.0, function=Alternating()),)
        context = make_context(examples=examples, rewards=rewards)
        common = {"learning_rate": learning_rate, "gradient_checkpointing": True}
        arguments = trl_arguments(num_generations=2, max_completion_length=3, **common)
        if method == "grpo":
            trained, _ = Grpo(prompts_per_step=1, micro_batch_size=2, trl=arguments).train(policy, context)
        else:
            names = ("optim", "lr_scheduler_type", "max_steps", "bf16")
            arguments = {name: arguments[name] for name in names} | common
            trained, _ = Sft(examples_per_step=2, micro_batch_size=2, trl=arguments).train(policy, context)
        after = dict(trained.model.named_parameters())
        assert after.keys() >= before.keys()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        curves = context.tracker.steps[1]
        assert math.isfinite(curves["loss"]) and math.isfinite(curves["grad_norm"]) and curves["grad_norm"] > 0
        return Step(still=set(before) - moved, moved=moved, curves=curves, policy=trained)

    return run


def is_vision(name):
    return ".visual." in name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_grpo_step_moves_everything_and_engine_and_trainer_agree(load_narrow, train, name):
    step = train(load_narrow(name))
    assert not step.still
    assert step.curves["parity/logp_difference/max"] < 2e-4
    assert step.policy.model.lm_head.weight is step.policy.model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["qwen2_vl_2b_instruct", *FAMILIES[1:]])
def test_a_frozen_tower_stays(load_narrow, train, name):
    step = train(load_narrow(name, freeze=("vision",)), method="sft")
    assert step.still and all(map(is_vision, step.still))
    assert step.moved and not any(map(is_vision, step.moved))
    assert "model.language_model.embed_tokens.weight" in step.moved


@pytest.mark.parametrize("name", FAMILIES)
def test_a_frozen_language_model_stays(load_narrow, train, name):
    step = train(load_narrow(name, freeze=("llm",)))
    assert step.moved and all(map(is_vision, step.moved))
    assert step.still and not any(map(is_vision, step.still))
    assert any("merger" in one for one in step.moved)
    assert name[:5] != "qwen3" or any("deepstack_merger_list" in one for one in step.moved)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_adapters_only_they_move(load_narrow, train, name):
    step = train(load_narrow(name, adapter=LORA))
    # B starts at 0, so A has no gradient in the first step.
    assert step.moved and all("lora_B" in one and not is_vision(one) for one in step.moved)
    assert {one.rpartition(".lora_")[0] for one in step.moved} == {
        f"base_model.model.model.language_model.layers.{layer}.self_attn.{part}_proj"
        for layer in range(step.policy.model.config.get_text_config().num_hidden_layers)
        for part in "qkvo"
    }
