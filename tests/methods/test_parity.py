"""The comparison of an update's shortcuts with trl's passes: it finds nothing where nothing is, and what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from visual_r1.config import CONF, build, compose_config
from visual_r1.datasets.spatial import Spatial
from visual_r1.methods import parity, shared_prefix_trainer
from visual_r1.methods.parity import CannotCompareError, compare, two_prompts
from visual_r1.models import Adapter, ModelSource, load_policy

NANO = CONF.parent / "models" / "seed0" / "nano-base"
EXACT = 1e-5
"""Relative for gradients; log-probs and entropies are of the order of 1."""


def nano(**arguments):
    return load_policy(ModelSource(name="nano", path=str(NANO), style="base"), **arguments)


def qwen2_5_vl():
    """A random Qwen2.5-VL, whose tower attends within windows, behind nano's processor."""
    policy = nano()
    config = policy.model.config.to_dict()
    vision = {
        **{"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "fullatt_block_indexes": [1]},
        **{"out_hidden_size": config["text_config"]["hidden_size"], "window_size": 56},
    }
    tokens = {name: config[name] for name in config if name.endswith("_token_id") and config[name] is not None}
    torch.manual_seed(0)
    text = {**config["text_config"], "model_type": "qwen2_5_vl_text"}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    model.generation_config = policy.model.generation_config
    return replace(policy, model=model)


def compared(policy, **arguments):
    examples = two_prompts(policy, Spatial(split="probe", size=2))
    return compare(policy, examples, shortcuts=build(compose_config([]).method).shortcuts, **arguments)


def test_the_two_prompts_are_of_different_lengths_also_where_there_is_one_example():
    policy = nano()
    first, second = two_prompts(policy, Spatial(split="probe", size=1))
    assert first.images[0].size != second.images[0].size
    assert policy.prompt_length(first) != policy.prompt_length(second)


@pytest.mark.parametrize("made", [nano, qwen2_5_vl])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_our_passes_are_trls_up_to_rounding(made, gradient_checkpointing):
    found = compared(made(), gradient_checkpointing=gradient_checkpointing)
    assert found.num_parameters == found.num_trained > 50
    assert not found.excess and 0 < max(found.ours.numbers.values()) < 10 * EXACT
    assert found.ours.gradient < EXACT and found.ours.worst_gradient < EXACT and found.ours.mean_logps < EXACT


def test_in_bfloat16_they_are_as_far_as_trls_own_from_themselves():
    found = compared(nano(), bf16=True)
    assert not found.excess
    assert found.stock.logps > 1e-3 and found.ours.logps > 1e-3  # it was bfloat16


def wrong_positions(arguments):
    arguments["position_ids"][..., arguments["layout"].num_prompt_tokens :] += 1


def wrong_prompts(arguments):
    layout = arguments["layout"]
    arguments["layout"] = replace(layout, prompt_of=layout.prompt_of.flip(0))


def other_pixels(arguments):
    arguments["pixel_values"] = arguments["pixel_values"] * 1.01


@pytest.mark.parametrize("spoil", [wrong_positions, wrong_prompts, other_pixels])
def test_what_is_wrong_is_far_beyond_rounding(spoil, monkeypatch):
    pack = shared_prefix_trainer.pack

    def spoilt(*args):
        arguments = pack(*args)
        spoil(arguments)
        return arguments

    monkeypatch.setattr(shared_prefix_trainer, "pack", spoilt)
    found = compared(nano())
    assert {"logps", "gradient"} <= found.excess.keys()
    value, allowed = found.excess["gradient"]
    assert value > 10 * allowed and found.stock.gradient < EXACT


def test_what_is_no_number_is_an_excess():
    found = compared(nano())
    broken = replace(found, ours=replace(found.ours, entropies=float("nan")))
    assert list(broken.excess) == ["entropies"]


def test_of_adapters_and_a_frozen_tower_what_is_trained_is_compared_and_nothing_is_left_behind():
    adapter = Adapter(rank=4, alpha=8, dropout=0.0, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    policy = nano(adapter=adapter, freeze=("vision",))
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    found = compared(policy)
    trained = [name for name, one in policy.model.named_parameters() if one.requires_grad]
    assert found.num_parameters == len(trained) and "lora" in found.ours.worst_parameter
    assert not found.excess and found.ours.gradient < EXACT
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    assert all(one.grad is None for one in policy.model.parameters())


def test_draws_of_dropout_are_not_compared():
    adapter = Adapter(rank=4, alpha=8, dropout=0.5, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    with pytest.raises(CannotCompareError, match="what dropout leaves out must be drawn anew"):
        compared(nano(adapter=adapter))


def test_of_a_large_model_a_part_of_the_gradient_is_compared(monkeypatch):
    monkeypatch.setattr(parity, "_GRADIENT_VALUES", 20_000)
    found = compared(nano())
    assert 10 < found.num_parameters < found.num_trained and not found.excess


def test_a_model_whose_prompts_cannot_be_shared_is_not_compared():
    policy = nano()
    policy.model.set_attn_implementation("eager")
    with pytest.raises(CannotCompareError, match="eager"):
        compared(policy)
