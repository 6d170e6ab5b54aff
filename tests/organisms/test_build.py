"""The build, with steps enough to see that every part runs and no more."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from visual_r1.organisms.build import RECORD, build, build_trunk, read_record
from visual_r1.organisms.corpus import Mixture
from visual_r1.organisms.instruct import tune
from visual_r1.organisms.model import build_model, build_processor
from visual_r1.organisms.pretraining import Recipe, pretrain, with_changes
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
    build(out, recipe=TINY, num_threads=1)
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


def test_a_record_says_how_it_was_made(nano):
    record = read_record(nano / "nano-base")
    assert record["recipe"] == asdict(TINY)
    assert (record["seed"], record["num_threads"], record["device"]) == (0, 1, "cpu")
    assert record["minutes"] >= 0
    assert {"commit", "is_dirty"} <= record.keys()


def test_a_base_from_a_kept_trunk_is_the_base_made_in_one_go(nano, tmp_path):
    trunk = build_trunk(tmp_path, recipe=TINY)
    build(tmp_path, recipe=TINY, trunk=trunk, with_instruct=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano-base", "nano-trunk"]
    weights = [(folder / "nano-base" / "model.safetensors").read_bytes() for folder in (nano, tmp_path)]
    assert weights[0] == weights[1]
    dosed = replace(TINY, mixture=Mixture(direct=0.24, careful=0.2))
    build(tmp_path / "dosed", recipe=dosed, trunk=trunk, with_instruct=False)
    assert (tmp_path / "dosed" / "nano-base" / "model.safetensors").read_bytes() != weights[0]


def test_a_trunk_of_another_making_is_refused(tmp_path):
    trunk = build_trunk(tmp_path, recipe=TINY)
    with pytest.raises(ValueError, match="grown with seed 0, asked for is seed 1"):
        build(tmp_path, seed=1, recipe=TINY, trunk=trunk)
    with pytest.raises(ValueError, match="grown with coordinate_steps=1, asked for is coordinate_steps=7"):
        build(tmp_path, recipe=replace(TINY, coordinate_steps=7), trunk=trunk)
    with pytest.raises(ValueError, match=r"mixture\.slip=0\.03, asked for is mixture\.slip=0\.5"):
        build(tmp_path, recipe=replace(TINY, mixture=Mixture(slip=0.5)), trunk=trunk)
    with pytest.raises(ValueError, match=f"has no {RECORD}"):
        build(tmp_path, recipe=TINY, trunk=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["nano-trunk"]


def test_changes_of_a_recipe_are_typed_and_named():
    changed = with_changes(
        TINY, ["dialogue_steps=7", "mixture.careful=0.04", "mixture.direct=0.40", "use_bfloat16=false"]
    )
    assert (changed.dialogue_steps, changed.mixture.careful, changed.use_bfloat16) == (7, 0.04, False)
    assert with_changes(TINY, []) == TINY
    for change, complaint in {
        "mixture.carful=0.1": "'mixture.carful' is unknown",
        "steps=3": "'steps' is unknown",
        "dialogue_steps=many": "'many' is no int",
        "use_bfloat16=1": "'1' is no bool",
        "mixture.careful=0.04": "add up to 1.04",
    }.items():
        with pytest.raises(ValueError, match=complaint):
            with_changes(TINY, [change])


def test_nothing_is_overwritten_and_nothing_is_left_behind(nano):
    before = (nano / "nano-base" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="nano-base"):
        build(nano, recipe=TINY)
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


def test_all_of_the_training_lies_where_the_model_does():
    processor = build_processor(build_tokenizer(eos_token=END_OF_TEXT))
    model = build_model(processor.tokenizer, seed=0)
    # Whatever asks for no device would lie on another one than the model.
    with torch.device("meta"):
        pretrain(model, processor, recipe=TINY, seed=0)
        tune(model, processor, recipe=TINY, seed=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
