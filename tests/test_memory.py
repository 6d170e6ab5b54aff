"""Memory by arithmetic, against the bytes of real models, optimizers and caches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from visual_r1.architectures.checkpoints import ARCHITECTURES, read_architecture
from visual_r1.config import compose_config, resolve
from visual_r1.memory import (
    Stage,
    disk_needed,
    needed,
    num_saved_values,
    plan_of,
    room_for_vllm,
    shape_of,
    stages,
    standing,
)
from visual_r1.models import Adapter
from visual_r1.rollout.vllm_setup import kv_cache_bytes

ROOT = Path(__file__).parents[1]
NANO = ROOT / "models" / "seed0" / "nano-base"
QWEN = read_architecture("qwen2_vl_2b")["files"]["config.json"]


@pytest.fixture(scope="module")
def nano():
    return shape_of(json.loads((NANO / "config.json").read_text()))


@pytest.fixture(scope="module")
def qwen():
    return shape_of(QWEN)


def plan(shape, *overrides):
    return plan_of(resolve(compose_config(overrides)), shape, image_pixels=50_176)


def parts(shape, name, *overrides):
    """The parts of a stage in GB, to one decimal."""
    [stage] = [one for one in stages(shape, plan(shape, *overrides)) if one.name == name]
    return {part: round(size / 1e9, 1) for part, size in stage.parts.items()}


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_counted_from_a_configuration(name):
    description = read_architecture(name)
    assert shape_of(description["files"]["config.json"]).num_parameters == description["num_parameters"]


def test_the_headers_of_a_checkpoint_say_as_much(nano, tmp_path):
    assert num_saved_values(NANO) == nano.num_parameters
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        num_saved_values(tmp_path)


def test_what_a_real_step_leaves_is_what_is_counted(nano, load):
    policy = load("base")
    model = policy.model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    grid = torch.tensor([[1, 4, 4]])
    ids = torch.tensor([[model.config.vision_start_token_id, *[model.config.image_token_id] * 4, 5, 6]])
    pixels = torch.randn(16, 3 * 2 * 14 * 14)
    kinds = (ids == model.config.image_token_id).int()
    model(input_ids=ids, labels=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds).loss.backward()
    optimizer.step()
    counted = plan(nano, "method.trl.beta=0")
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert standing(nano, counted) == {"weights": size_of(model.parameters()), "optimizer": size_of(moments)}
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert dict(stages(nano, counted)[1].parts)["gradients"] == size_of(gradients)
    assert nano.num_vision == sum(parameter.numel() for parameter in model.model.visual.parameters())
    # A second copy to measure KL to.
    assert standing(nano, plan(nano))["reference policy"] == size_of(model.parameters())


@pytest.mark.parametrize("part", ["vision", "llm"])
def test_what_is_frozen_has_no_gradients(nano, load, part):
    model = load("base", freeze=(part,)).model
    assert plan(nano, f"freeze={part}").num_trained == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )


def test_adapters_are_counted_where_peft_puts_them(nano, load):
    lora = resolve(compose_config(["adapter=lora"]))["adapter"]["lora"]
    arguments = {key: lora[key] for key in ("rank", "alpha", "dropout", "target_modules")}
    model = load("base", adapter=Adapter(**arguments)).model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    counted = plan(nano, "adapter=lora")
    assert counted.num_trained == sum(parameter.numel() for parameter in trained) > 0
    # The model without them is the reference policy.
    assert standing(nano, counted) == {
        "weights": size_of(model.parameters()),
        "optimizer": 2 * size_of(trained),
    }


def test_keys_and_values_are_those_of_a_real_cache(nano, policies):
    model = policies["base"].model
    with torch.no_grad():
        cache = model(input_ids=torch.arange(7)[None].repeat(3, 1), use_cache=True).past_key_values
    real = size_of([tensor for layer in cache.layers for tensor in (layer.keys, layer.values)])
    assert nano.kv_bytes(num_tokens=3 * 7, key_bytes=4, value_bytes=4) == real


def test_vllm_is_given_the_same_keys_and_values(nano, policies):
    """Its engine asks for whole blocks of 128 tokens, and one more."""
    chosen = ("rollout=vllm_colocate", "scale.rollout_batch_size=8")
    counted = plan(nano, *chosen, "rollout.engine.max_model_length=256")
    asked = kv_cache_bytes(policies["base"].model.config, num_sequences=8, max_length=256, bytes_per_value=4)
    block = nano.kv_bytes(num_tokens=128, key_bytes=4, value_bytes=4)
    assert dict(stages(nano, counted)[0].parts)["vLLM's keys and values"] == asked - block
    # Not beyond the model's own context, and as much as the user says.
    longest = nano.kv_bytes(num_tokens=8 * 2048, key_bytes=4, value_bytes=4)
    assert plan(nano, *chosen, "rollout.engine.max_model_length=9999").engine_kv_bytes == longest
    assert plan(nano, *chosen, "rollout.engine.kv_cache_gib=0.5").engine_kv_bytes == 2**29


def test_the_scale_of_one_gpu_takes_what_its_file_says(qwen):
    """conf/scale/gpu.yaml: weights, gradients, moments, reference policy, keys and values under autocast."""
    update, rollout = parts(qwen, "update", "scale=gpu"), parts(qwen, "rollout", "scale=gpu")
    assert update["weights"] == update["gradients"] == update["reference policy"] == 8.8
    assert update["optimizer"] == 17.7 and update["autocast's copies"] == 4.4 and update["activations"] == 3.2
    assert 3.7 <= rollout["keys and values"] < 4 and "gradients" not in rollout
    assert 50 < needed(qwen, plan(qwen, "scale=gpu")) / 1e9 < 80


def test_zero2_splits_what_is_trained_and_zero3_the_weights_as_well(qwen):
    alone = standing(qwen, plan(qwen, "scale=paper", "distributed.num_processes=1"))
    assert alone["weights"] == 2 * qwen.num_parameters and alone["float32 weights"] == 4 * qwen.num_parameters
    two = standing(qwen, plan(qwen, "scale=paper"))
    three = standing(qwen, plan(qwen, "scale=paper", "distributed=zero3"))
    for name in ("float32 weights", "optimizer"):
        assert two[name] == three[name] == alone[name] // 4
    for name in ("weights", "reference policy"):
        assert two[name] == alone[name] == 4 * three[name]
    # To sample, each process holds all of them.
    assert parts(qwen, "rollout", "scale=paper", "distributed=zero3")["gathered weights"] == 4.4


def test_fsdp_keeps_float32_weights_in_parts(qwen):
    split = standing(qwen, plan(qwen, "scale=paper", "distributed=fsdp", "model.dtype=float32"))
    assert split["weights"] == qwen.num_parameters and split["optimizer"] == 2 * qwen.num_parameters


def test_vllm_in_float32_takes_twice_as_much(qwen):
    two, four = (
        plan(qwen, "scale=paper", "rollout=vllm_colocate", f"rollout.engine.bf16={on}") for on in (True, False)
    )
    assert four.engine_kv_bytes == 2 * two.engine_kv_bytes > 0
    device = 80 * 10**9
    room = [room_for_vllm(qwen, one, device_bytes=device) for one in (two, four)]
    lost = 2 * qwen.num_parameters // qwen.kv_bytes(num_tokens=1, key_bytes=4, value_bytes=4)  # to its weights
    assert room[1] == pytest.approx(room[0] / 2 - lost, abs=2)


def test_vllm_gets_what_the_rest_leaves_free(qwen):
    asleep = plan(qwen, "scale=paper", "rollout=vllm_colocate")
    awake = plan(qwen, "scale=paper", "rollout=vllm_colocate", "rollout.engine.sleep=false")
    device = 80 * 10**9
    per_token = qwen.kv_bytes(num_tokens=1, key_bytes=2, value_bytes=2)
    used = sum(standing(qwen, asleep).values()) + 2 * qwen.num_parameters
    assert room_for_vllm(qwen, asleep, device_bytes=device) == (int(device / 1.1) - used) // per_token
    assert room_for_vllm(qwen, awake, device_bytes=device) < room_for_vllm(qwen, asleep, device_bytes=device)
    assert room_for_vllm(qwen, asleep, device_bytes=10**9) == 0
    # Asleep it takes nothing from the update.
    [update] = [stage for stage in stages(qwen, asleep) if stage.name == "update"]
    assert not [part for part in update.parts if part.startswith("vLLM")]


def test_an_evaluation_only_samples_and_writes_no_checkpoint(nano):
    counted = plan(nano, "method=eval")
    assert [stage.name for stage in stages(nano, counted)] == ["rollout"]
    assert disk_needed(nano, counted) == 0 and needed(nano, counted) > 4 * nano.num_parameters


def test_a_chain_is_planned_by_its_last_stage(nano):
    assert plan(nano, "method=sft_then_grpo").has_reference


def test_the_disk_holds_two_checkpoints_and_the_model(nano):
    assert disk_needed(nano, plan(nano)) == 2 * 12 * nano.num_parameters + 4 * nano.num_parameters


def test_a_checkpoint_without_a_limit_of_pixels_says_what_to_set(nano):
    with pytest.raises(ValueError, match=r"model\.max_pixels=null"):
        plan_of(resolve(compose_config()), nano)


def test_a_stage_is_the_sum_of_its_parts():
    assert Stage("update", {"weights": 3, "gradients": 4}).total == 7
