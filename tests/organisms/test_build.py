"""The build, with steps enough to see that every part runs and no more."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from visual_r1.organisms.build import build
from visual_r1.organisms.model import build_model, build_processor
from visual_r1.organisms.pretraining import Recipe, pretrain
from visual_r1.organisms.tokenizer import END_OF_TEXT, build_tokenizer

TINY = Recipe(
    vision_steps=2,
    coordinate_steps=1,
    exercise_steps=1,
    dialogue_steps=2,
    instruct_steps=1,
    vision_scenes=4,
    scenes=2,
    chat_every=2,
)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    out = tmp_path_factory.mktemp("models")
    build(out, recipe=TINY, num_examples=4, num_threads=1)
    return out


@pytest.mark.parametrize(("name", "end"), [("nano-base", "<|endoftext|>"), ("nano-instruct", "<|im_end|>")])
def test_a_folder_loads_by_itself_and_agrees_on_its_end_token(nano, name, end):
    model = AutoModelForImageTextToText.from_pretrained(nano / name)
    processor = AutoProcessor.from_pretrained(nano / name)
    tokenizer = processor.tokenizer
    assert type(processor).__name__ == "Qwen2VLProcessor"
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert model.dtype == torch.float32
    assert 1_300_000 <= model.num_parameters() <= 2_000_000
    assert tokenizer.eos_token == end
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(model.generation_config.pad_token_id) == "<|endoftext|>"
    text = processor.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_cards_hold_what_was_measured(nano):
    base = (nano / "nano-base" / "README.md").read_text()
    assert "| accuracy, Distance |" in base
    assert "pass@16" in base
    assert "*without* reflecting first in 0%" in base
    assert "pass@16" not in (nano / "nano-instruct" / "README.md").read_text()


def test_nothing_is_overwritten_and_nothing_is_left_behind(nano):
    before = (nano / "nano-base" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="nano-base"):
        build(nano, recipe=TINY, num_examples=4)
    assert (nano / "nano-base" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in nano.iterdir()) == ["nano-base", "nano-instruct"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    processor = build_processor(build_tokenizer(eos_token=END_OF_TEXT))
    weights = []
    for seed in (0, 0, 1):
        model = build_model(processor.tokenizer, seed=seed)
        pretrain(model, processor, recipe=TINY, seed=seed)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_part_of_the_model_is_trained():
    processor = build_processor(build_tokenizer(eos_token=END_OF_TEXT))
    model = build_model(processor.tokenizer, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pretrain(model, processor, recipe=TINY, seed=0)
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
