"""Invariant 5: what is frozen stays bit for bit, and everything else moves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visual_r1.methods.grpo import Grpo
from visual_r1.models import Adapter, ModelSource, load_policy, save_policy
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.weighted import WeightedReward

ROOT = Path(__file__).resolve().parents[2]
LORA = Adapter(rank=4, alpha=8, dropout=0.0, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)")
REWARDS = (WeightedReward(name="length_bonus", weight=1.0, function=LengthBonus(per_token=0.1)),)


def is_vision(name):
    return ".visual." in name


def train(policy, make_context, trl_arguments, **arguments):
    """Two steps; the weights before and after, by name, and the trained policy."""
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    arguments = trl_arguments(max_steps=2, learning_rate=1.0, **arguments)
    method = Grpo(prompts_per_step=4, micro_batch_size=8, trl=arguments)
    trained, _ = method.train(policy, make_context(rewards=REWARDS))
    after = {name: weight.detach().clone() for name, weight in trained.model.named_parameters()}
    assert after.keys() >= before.keys()
    return before, after, trained


@pytest.mark.parametrize(
    ("part", "is_frozen"),
    [("vision", is_vision), ("llm", lambda name: not is_vision(name))],
    ids=["vision", "llm"],
)
def test_a_frozen_part_stays_and_the_other_moves(load, make_context, trl_arguments, part, is_frozen):
    before, after, _ = train(load(freeze=[part]), make_context, trl_arguments)
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == {name for name in before if is_frozen(name)}
    assert 10 < len(stayed) < len(before) - 10


@pytest.fixture(scope="module")
def with_lora(load, make_context, trl_arguments):
    return train(load(adapter=LORA), make_context, trl_arguments, beta=0.04)


def test_lora_moves_its_adapters_alone(with_lora):
    before, after, _ = with_lora
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Four layers of four projections with two matrices each; all names hold peft's "default".
    assert moved == {name for name in before if ".lora_" in name and ".default." in name}
    assert len(moved) == 32


def test_a_saved_lora_run_is_a_plain_checkpoint(with_lora, load, checkpoint, tmp_path):
    _, after, trained = with_lora

    name = "model.language_model.layers.0.self_attn.q_proj"
    up, down = (after[f"base_model.model.{name}.lora_{letter}.default.weight"] for letter in "BA")
    expected = after[f"base_model.model.{name}.base_layer.weight"] + LORA.alpha / LORA.rank * up @ down
    save_policy(trained, tmp_path / "model", num_steps=2)
    code = f"""
import sys
sys.modules["peft"] = None  # importing it would fail
import torch
from transformers import AutoModelForImageTextToText
model, report = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "model")!r}, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
torch.save(model.get_submodule({name!r}).weight, {str(tmp_path / "weight.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    merged = torch.load(tmp_path / "weight.pt", weights_only=True)
    torch.testing.assert_close(merged, expected.cpu(), rtol=0, atol=1e-6)
    start = dict(load().model.named_parameters())[f"{name}.weight"]
    delta = (merged - start.cpu()).abs().max().item()
    assert delta > 1e-3


def test_what_lora_has_learned_on_bfloat16_weights_is_saved(checkpoint, tmp_path):
    source = ModelSource(name="base", path=str(checkpoint("base")), style="base", dtype="bfloat16")
    policy = load_policy(source, adapter=LORA)
    layer = policy.model.get_submodule("base_model.model.model.language_model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-5)  # of the size that a learning rate of 1e-6 leads to
        expected = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
        assert not torch.equal(expected, layer.base_layer.weight.float())
    save_policy(policy, tmp_path / "model", num_steps=1)
    saved = load_policy(ModelSource(name="saved", path=str(tmp_path / "model")))
    weight = saved.model.get_submodule("model.language_model.layers.0.self_attn.q_proj").weight
    torch.testing.assert_close(weight.cpu(), expected.cpu(), rtol=0, atol=1e-7)


def test_an_interrupted_lora_run_ends_where_an_uninterrupted_one_does(load, make_context, trl_arguments):
    method = Grpo(prompts_per_step=4, micro_batch_size=8, trl=trl_arguments(beta=0.04, max_steps=3, learning_rate=1.0))
    whole, parts = (make_context(rewards=REWARDS, save_every_steps=1) for _ in range(2))

    def train_in(context, *, seed):
        torch.manual_seed(seed)  # decides the adapters' first weights
        return method.train(load(adapter=LORA), context)

    expected, _ = train_in(whole, seed=0)
    train_in(parts, seed=0)
    shutil.rmtree(parts.folder.checkpoints / "checkpoint-3")
    parts.tracker.steps.clear()
    resumed, num_steps = train_in(parts, seed=1)  # what is loaded, not what is drawn, counts
    assert num_steps == 3 and list(parts.tracker.steps) == [3]
    for name in ("loss", "reward", "kl", "grad_norm"):
        assert parts.tracker.steps[3][name] == whole.tracker.steps[3][name], name
    weights = expected.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.state_dict().items())


def test_lora_leaves_the_engine_and_the_trainer_agreed(load, make_context, trl_arguments):
    context = make_context(rewards=REWARDS)
    Grpo(prompts_per_step=4, micro_batch_size=8, trl=trl_arguments(beta=0.04, max_steps=2)).train(
        load(adapter=LORA), context
    )
    assert all(context.tracker.steps[step]["parity/logp_difference/max"] < 2e-4 for step in (1, 2))
    assert abs(context.tracker.steps[1]["kl"]) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze": ["vision", "llm"]}, "every part is frozen, nothing is left to train"),
        ({"freeze": ["llm"], "adapter": LORA}, "every part is frozen, nothing is left to train"),
        ({"freeze": ["vison"]}, "unknown part 'vison', expected one of ['llm', 'vision']"),
    ],
    ids=["everything", "the-adapters-too", "unknown"],
)
def test_a_freeze_that_cannot_be_meant_is_refused(load, arguments, message):
    with pytest.raises(ValueError) as refused:
        load(**arguments)
    assert message in str(refused.value)


def test_an_adapter_that_fits_nothing_is_named(load):
    with pytest.raises(ValueError, match=r"adapter\.target_modules='nowhere'"):
        load(adapter=Adapter(rank=4, alpha=8, dropout=0.0, target_modules="nowhere"))


def test_freezing_vision_keeps_lora_on_the_language_model(load):
    policy = load(freeze=["vision"], adapter=LORA)
    trained = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_" in name and ".language_model." in name for name in trained)
