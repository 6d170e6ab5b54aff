"""Checkpoints: what is refused before a weight is read, what a saved folder holds, what ends a completion."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from visual_r1.models import CheckpointError, ModelSource, is_hub_id, load_policy, save_policy
from visual_r1.prompts import ROLELESS_CHAT_TEMPLATE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a checkpoint, to be spoilt."""
    return shutil.copytree(checkpoint("base"), tmp_path / "copy")


def source(path, **arguments):
    given: dict[str, Any] = {"name": "x", "path": str(path), "style": "base", **arguments}
    return ModelSource(**given)


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def remove(folder, pattern):
    removed = list(folder.glob(pattern))
    assert removed
    for path in removed:
        path.unlink()


def pickled_only(folder):
    remove(folder, "*.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(shutil.rmtree, "no such checkpoint", id="missing"),
        pytest.param(lambda folder: remove(folder, "config.json"), "config.json is missing", id="no-config"),
        pytest.param(lambda folder: remove(folder, "*.safetensors"), "no *.safetensors file", id="no-weights"),
        pytest.param(pickled_only, "only pickled weights, which we never load", id="pickled"),
        pytest.param(
            lambda folder: edit_json(folder / "config.json", architectures=["Qwen2ForCausalLM"]),
            "Qwen2ForCausalLM takes no images",
            id="text-only",
        ),
        pytest.param(lambda folder: remove(folder, "*processor_config.json"), "no image processor", id="no-processor"),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON", id="corrupt-config"
        ),
    ],
)
def test_an_unusable_folder_is_refused_by_name(folder, spoil, message):
    assert source(folder).prompt_style.name == "base"  # whole, it is welcome
    spoil(folder)
    with pytest.raises(CheckpointError) as refused:
        source(folder)
    assert str(folder) in str(refused.value) and message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "bsae"}, "model.style=bsae: unknown, expected one of ['base', 'instruct']"),
        ({"prompt": "papper"}, "model.prompt=papper: unknown, expected clean or paper"),
        ({"style": None}, "say how to talk to it, model.style=base or model.style=instruct"),
        ({"max_pixels": 0}, "model.max_pixels=0: expected at least 1"),
        ({"dtype": "float8"}, "model.dtype=float8: unknown"),
        ({"path": "Qwen/Qwen2-VL-2B", "style": None}, "Qwen/Qwen2-VL-2B: not one of our runs; say how to talk to it"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_description_is_refused(checkpoint, arguments, message):
    with pytest.raises(CheckpointError) as refused:
        source(**{"path": checkpoint("base"), **arguments})
    assert message in str(refused.value)


def test_the_stored_style_is_read(folder):
    (folder / "visual_r1.json").write_text('{"style": "instruct", "prompt": "paper", "num_steps": 1}')
    stored = source(folder, style=None).prompt_style
    assert (stored.name, stored.wording) == ("instruct", "paper")
    assert source(folder, style=None, prompt="clean").prompt_style.wording == "clean"
    # Talked to in another way than it was trained, it is asked in the clean wording of that way.
    other = source(folder, style="base").prompt_style
    assert (other.name, other.wording) == ("base", "clean")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"prompt": "base"}', '{"style": "loud", "prompt": "clean"}'])
def test_a_damaged_stored_style_is_refused_by_name(folder, text):
    (folder / "visual_r1.json").write_text(text)
    with pytest.raises(CheckpointError) as refused:
        source(folder, style=None)
    assert "visual_r1.json" in str(refused.value) or "loud" in str(refused.value)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 64), id="weights"),
        pytest.param(lambda folder: edit_json(folder / "config.json", model_type="abacus"), id="architecture"),
        pytest.param(lambda folder: (folder / "tokenizer.json").write_text("{"), id="tokenizer"),
    ],
)
def test_files_that_make_no_model_are_refused_when_it_is_loaded(folder, spoil):
    spoil(folder)
    with pytest.raises(CheckpointError, match=r"cannot be loaded as a vision-language model") as refused:
        load_policy(source(folder))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_an_instruct_prompt_needs_a_chat_template(folder):
    remove(folder, "chat_template.jinja")
    with pytest.raises(CheckpointError, match=r"no chat template.*use model\.style=base"):
        load_policy(source(folder, style="instruct"))
    assert load_policy(source(folder)).processor.chat_template == ROLELESS_CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen/Qwen2-VL-2B", True),
        ("models/seed0/nano-base", False),
        ("runs/mine", False),
        ("./here", False),
        ("a/b/c", False),
        ("/abs", False),
        ("nano", False),
    ],
)
def test_hub_ids(path, expected):
    assert is_hub_id(path) is expected


def test_end_tokens_come_from_tokenizer_and_checkpoint(load, policies):
    base, instruct = policies["base"], policies["instruct"]
    end_of_text, end_of_turn = base.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert base.end_token_ids == (end_of_text,)
    assert instruct.end_token_ids == (end_of_turn, end_of_text)
    policy = load("instruct")
    for declared, expected in ((None, (end_of_turn,)), (end_of_text, (end_of_turn, end_of_text))):
        policy.model.generation_config.eos_token_id = declared
        assert policy.end_token_ids == expected


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_a_saved_policy_is_a_plain_checkpoint(load, checkpoint, tmp_path, kind):
    policy = load(kind)
    with torch.no_grad():
        policy.model.lm_head.weight[7] += 1
    template = policy.processor.chat_template
    save_policy(policy, tmp_path / "model", num_steps=3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert policy.processor.chat_template == template

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", use_safetensors=True)
    assert_equal_weights(model, policy.model)
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    own = AutoProcessor.from_pretrained(checkpoint(kind))
    assert processor.chat_template == own.chat_template != ROLELESS_CHAT_TEMPLATE
    again = load_policy(source(tmp_path / "model", style=None))
    assert again.style == policy.style and again.processor.chat_template == template
    assert again.end_token_ids == policy.end_token_ids


def assert_equal_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight.cpu(), theirs[name].cpu()), name


def test_checking_a_checkpoint_imports_no_torch(checkpoint):
    code = (
        "import sys; from visual_r1.models import ModelSource; "
        f"ModelSource(name='x', path={str(checkpoint('base'))!r}, style='base'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
