"""The weights that another engine is given are those that a saved checkpoint holds."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from visual_r1.models import save_policy
from visual_r1.rollout.weights import policy_weights

FAMILIES = ("qwen2_vl_2b", "qwen2_5_vl_3b_instruct", "qwen3_vl_2b_instruct")


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_values_are_those_of_the_saved_checkpoint(load_adapted, tmp_path, name):
    policy = load_adapted(name, layers="q_proj|v_proj|up_proj")
    weights = {key: tensor.clone() for key, tensor in policy_weights(policy)}
    learned = [
        (layer.get_delta_weight("default"), layer.base_layer.weight.clone())
        for path, layer in policy.model.named_modules()
        if path.endswith("q_proj") and hasattr(layer, "lora_A")
    ]
    save_policy(policy, tmp_path / "model", num_steps=1)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}
    assert weights.keys() == saved.keys() and len(saved) > 40
    for key, tensor in saved.items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-6, msg=key)
    merged = [tensor for key, tensor in saved.items() if key.endswith("q_proj.weight") and "visual" not in key]
    assert len(learned) == len(merged) >= 2
    for (delta, base), tensor in zip(learned, merged, strict=True):
        assert delta.abs().max() > 1e-2
        torch.testing.assert_close(tensor - base, delta, rtol=0, atol=1e-6)
