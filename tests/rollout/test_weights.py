"""A policy's weights, one at a time: tied, bfloat16, several adapters, and in small buckets."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from visual_r1.models import Adapter, ModelSource, load_policy, save_policy
from visual_r1.rollout import weights
from visual_r1.rollout.weights import policy_weights

LORA = Adapter(rank=2, alpha=4, dropout=0.5, target_modules=r".*language_model.*\.q_proj")


def test_a_tied_head_is_not_among_them(policies):
    policy = policies["base"]
    model = policy.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    names = [name for name, _ in policy_weights(policy)]
    assert "lm_head.weight" not in names and len(names) == len(set(names)) == len(list(model.parameters()))


def test_names_and_values_are_those_of_the_saved_checkpoint(load, tmp_path):
    policy = load("instruct")
    by_name = {name: tensor.clone() for name, tensor in policy_weights(policy)}
    save_policy(policy, tmp_path / "model", num_steps=1)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert by_name.keys() == saved.keys()
    assert all(torch.equal(by_name[name], tensor) for name, tensor in saved.items())


def test_an_untied_head_is(load):
    policy = load()
    model = policy.model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() + 1)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    by_name = dict(policy_weights(policy))
    assert torch.equal(by_name["lm_head.weight"], model.lm_head.weight)


def test_an_adapter_is_merged_in_float32_and_the_others_are_left_out(checkpoint):
    source = ModelSource(name="base", path=str(checkpoint("base")), style="base", dtype="bfloat16")
    policy = load_policy(source, adapter=LORA)
    layer = next(module for name, module in policy.model.named_modules() if name.endswith("layers.1.self_attn.q_proj"))
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-4)  # below bfloat16's rounding of most weights
    policy.model.add_adapter("ref", policy.model.peft_config["default"])  # as trl keeps the reference policy
    with torch.no_grad():
        layer.lora_B["ref"].weight.fill_(9.0)
    expected = layer.base_layer.weight.float() + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    by_name = dict(policy_weights(policy))
    merged = by_name["model.layers.1.self_attn.q_proj.weight"]
    assert merged.dtype == torch.float32 and by_name["model.norm.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-7)
    assert not torch.equal(merged.bfloat16().float(), merged)


@pytest.mark.parametrize("size", [1, 10_000_000_000])
def test_the_size_of_the_buckets_changes_nothing(policies, monkeypatch, size):
    expected = list(policy_weights(policies["base"]))
    monkeypatch.setattr(weights, "_BUCKET_BYTES", size)
    again = list(policy_weights(policies["base"]))
    assert [name for name, _ in again] == [name for name, _ in expected]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(again, expected, strict=True))
