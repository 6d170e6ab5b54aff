"""Checkpoints of the true architectures: their files, their size, and what a prompt becomes in their processors."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from visual_r1.architectures.checkpoints import (
    ARCHITECTURES,
    build_checkpoint,
    build_model,
    read_architecture,
    read_chat_template,
)
from visual_r1.models import CheckpointError, ModelSource
from visual_r1.rollout.transformers import encode_prompts

PATCHES_OF_A_TOKEN = 4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_true_configuration_has_the_published_number_of_parameters(name):
    description = read_architecture(name)
    model = build_model(description["files"]["config.json"], dtype="bfloat16", device="meta", seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == description["num_parameters"]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    config = model.config
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151652, 151653)
    text = config.get_text_config()
    assert text.vocab_size == 151936
    head = text.hidden_size // text.num_attention_heads
    assert sum(text.rope_parameters["mrope_section"]) == head // 2 == 64


def test_the_papers_model_is_as_deep_as_it_says():
    config = build_model(
        read_architecture("qwen2_vl_2b")["files"]["config.json"], dtype="bfloat16", device="meta", seed=0
    ).config
    assert config.vision_config.depth == 32
    assert config.text_config.num_hidden_layers == 28
    assert config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert config.text_config.sliding_window is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_have_the_names_of_the_hub(narrow, name):
    with safe_open(narrow(name) / "model.safetensors", "pt") as file:
        names = set(file.keys())
    # As in the model.safetensors.index.json of Qwen/Qwen2-VL-2B, and in Qwen/Qwen3-VL-2B-Instruct. A tied head has no
    # entry of its own.
    prefix = "model.language_model." if name.startswith("qwen3") else "model."
    tower = "model.visual." if name.startswith("qwen3") else "visual."
    layer = {"input_layernorm.weight", "mlp.down_proj.weight", "self_attn.k_proj.weight", "self_attn.o_proj.weight"}
    expected = {f"{prefix}layers.1.{part}" for part in layer} | {f"{prefix}embed_tokens.weight", f"{prefix}norm.weight"}
    expected |= {f"{tower}{part}" for part in ("blocks.1.attn.qkv.weight", "patch_embed.proj.weight")}
    if name.startswith("qwen3"):
        expected |= {f"{tower}deepstack_merger_list.1.linear_fc1.weight", f"{tower}merger.linear_fc2.bias"}
        expected |= {f"{prefix}layers.0.self_attn.q_norm.weight", f"{tower}pos_embed.weight"}
    else:
        expected |= {f"{prefix}layers.0.self_attn.q_proj.bias", f"{tower}merger.mlp.2.weight"}
    assert expected <= names
    assert all(one.startswith((prefix, tower)) for one in names)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_loads_like_any_checkpoint(narrow_policy, name):
    policy = narrow_policy(name)
    model = policy.model
    assert (type(model).__name__,) == tuple(read_architecture(name)["files"]["config.json"]["architectures"])
    assert policy.end_token_ids == (151645, 151643)  # both end a completion, base model or not
    assert set(policy.image_token_ids) == {151652, 151653, 151655, 151656}
    assert policy.limits.factor == (32 if name.startswith("qwen3") else 28)
    assert policy.limits.min_pixels == (65_536 if name.startswith("qwen3") else 3136)
    assert policy.limits.max_pixels == 401_408
    assert policy.context_length == read_context(name)
    # Random, but not the same everywhere: a weight that was left out would stand at its initial value.
    biases = {one for one, weight in model.named_parameters() if weight.abs().max() == 0}
    assert all(one.endswith("bias") for one in biases)


def read_context(name):
    config = read_architecture(name)["files"]["config.json"]
    return config.get("text_config", config)["max_position_embeddings"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_image_at_the_limit_has_the_tokens_counted_by_hand(narrow_policy, example, name):
    policy = narrow_policy(name)
    # 401,408 pixels: 896 x 448 are 32 x 16 tokens of 28 x 28 pixels, or 28 x 14 of 32 x 32.
    at_limit = 392 if name.startswith("qwen3") else 512
    # 280 x 140 are 10 x 5; Qwen3-VL enlarges what has fewer than 65,536 pixels, here by 1.293 to 362.0 x 181.0: 12 x 6.
    small = 72 if name.startswith("qwen3") else 50
    for sizes, tokens in (
        ([(896, 448)], [at_limit]),
        ([(1792, 896)], [at_limit]),
        ([(280, 140)], [small]),
        ([(896, 448), (280, 140)], [at_limit, small]),
    ):
        asked = policy.fitted(example(*sizes))
        inputs = encode_prompts(policy, [policy.style.messages(asked)])
        ids = inputs["input_ids"][0].tolist()
        assert ids.count(151655) == sum(tokens)
        assert runs_of(ids, 151655) == tokens
        assert inputs["image_grid_thw"].prod(dim=1).tolist() == [PATCHES_OF_A_TOKEN * count for count in tokens]
        assert len(inputs["pixel_values"]) == PATCHES_OF_A_TOKEN * sum(tokens)
        assert policy.prompt_length(asked) == len(ids)


def runs_of(ids, token):
    """The lengths of the runs of a token."""
    lengths, before = [], None
    for one in ids:
        if one == token:
            lengths = [*lengths[:-1], lengths[-1] + 1] if before == token else [*lengths, 1]
        before = one
    return lengths


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_reads_as_on_the_hub(narrow_policy, example, name):
    policy = narrow_policy(name)
    asked = policy.fitted(example((280, 140)))
    ids = encode_prompts(policy, [policy.style.messages(asked)])["input_ids"][0].tolist()
    text = policy.tokenizer.decode(ids).replace("<|image_pad|>", "")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    body = f"<|vision_start|><|vision_end|>{policy.style.text(asked)}"
    expected = {
        "qwen2_vl_2b": body,
        "qwen3_vl_2b_instruct": f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n",
    }.get(name, f"{system}<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n")
    assert text == expected


def test_the_base_checkpoints_own_template_knows_parts_and_no_roles():
    from jinja2 import Template

    template = Template(read_chat_template("roleless.jinja"))
    parts = [{"type": "image"}, {"type": "text", "text": " See? \n"}, {"type": "video"}, {"text": "x"}]
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    assert template.render(messages=parts) == f"{image} See? \n{video}x"
    assert template.render(messages=" as it is \n") == " as it is \n"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_image_processor_is_the_checkpoints(narrow_policy, name):
    processor = narrow_policy(name).processor.image_processor
    mean = [0.5] * 3 if name.startswith("qwen3") else [0.48145466, 0.4578275, 0.40821073]
    assert list(processor.image_mean) == mean
    assert (processor.patch_size, processor.merge_size, processor.temporal_patch_size) == (
        *(16 if name.startswith("qwen3") else 14, 2, 2),
    )
    assert processor.size["longest_edge"] == (16_777_216 if name.startswith("qwen3") else 12_845_056)


def test_a_folder_has_the_hubs_files(narrow):
    folder = narrow("qwen2_vl_2b")
    config = json.loads((folder / "config.json").read_text())
    assert "text_config" not in config and config["num_hidden_layers"] == 2  # the layout before transformers 5
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    with pytest.raises(CheckpointError, match=r"model\.style"):
        ModelSource(name="no_style", path=str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "qwen9"}, r"architecture 'qwen9': unknown, expected one of \['qwen2_5_vl_3b_instruct'"),
        ({"text_layers": 0}, "text_layers=0: expected 1 to 28"),
        ({"text_layers": 29}, "text_layers=29: expected 1 to 28"),
        ({"vision_depth": 33}, "vision_depth=33: expected 1 to 32"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_built_is_refused(tmp_path, arguments, message):
    name = arguments.pop("name", "qwen2_vl_2b")
    with pytest.raises(ValueError, match=message):
        build_checkpoint(name, tmp_path / "x", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "depth", "key", "kept"),
    [
        ("qwen2_5_vl_3b_instruct", 2, "fullatt_block_indexes", [1]),
        ("qwen2_5_vl_3b_instruct", 10, "fullatt_block_indexes", [7, 9]),
        ("qwen2_5_vl_3b_instruct", None, "fullatt_block_indexes", [7, 15, 23, 31]),
        ("qwen3_vl_2b_instruct", 2, "deepstack_visual_indexes", [1]),
        ("qwen3_vl_2b_instruct", 12, "deepstack_visual_indexes", [5, 11]),
        ("qwen3_vl_2b_instruct", None, "deepstack_visual_indexes", [5, 11]),  # fewer than text layers
    ],
)
def test_a_shallow_tower_keeps_both_kinds_of_block(monkeypatch, tmp_path, name, depth, key, kept):
    written = {}
    monkeypatch.setattr(
        "visual_r1.architectures.checkpoints.write_checkpoint",
        lambda description, folder, **arguments: written.update(description["files"]["config.json"]),
    )
    build_checkpoint(name, tmp_path, text_layers=3, vision_depth=depth)
    assert written["vision_config"][key] == kept
