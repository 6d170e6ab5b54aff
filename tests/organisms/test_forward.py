"""The fast forward equals Hugging Face's, token for token."""

from __future__ import annotations

import pytest
import torch

from visual_r1.datasets.spatial import Spatial
from visual_r1.organisms.build import MICRO, NANO
from visual_r1.organisms.forward import FastForward, to_patches
from visual_r1.organisms.model import build_model, build_processor
from visual_r1.organisms.pretraining import Format
from visual_r1.organisms.tokenizer import END_OF_TEXT, build_tokenizer
from visual_r1.prompts import PROMPT_STYLES

COMPLETION = "It is left.</think>\n<answer>(A)</answer>"


@pytest.fixture(scope="module", params=(NANO, MICRO), ids=lambda organism: organism.name)
def organism(request):
    return request.param


@pytest.fixture(scope="module")
def processor(organism):
    return build_processor(build_tokenizer(eos_token=END_OF_TEXT, world=organism.world))


@pytest.fixture(scope="module")
def model(processor, organism):
    return build_model(processor.tokenizer, seed=0, architecture=organism.architecture).eval()


def _inputs(processor, style, example):
    """The example's prompt as the rest of the project renders it, with a completion."""
    text = processor.apply_chat_template(
        style.messages(example),
        chat_template=style.chat_template,
        add_generation_prompt=style.chat_template is None,
        tokenize=False,
    )
    return processor(text=[text + COMPLETION], images=list(example.images), return_tensors="pt")


@pytest.mark.parametrize("style", PROMPT_STYLES.values(), ids=lambda style: style.name)
@torch.inference_mode()
def test_logits_equal_those_of_hugging_face(model, processor, organism, style):
    data = Spatial(split="probe", size=3, world=organism.name)
    format, forward = Format(processor, style, organism.world), FastForward(model)
    shared = len(format.head.ids)
    images = forward.images(to_patches([example.images[0] for example in data]))
    states = forward.head(format.head, images)
    for owner in range(3):
        inputs = _inputs(processor, style, data[owner])
        reference = model(**inputs).logits[0, shared:]
        text = format.prompt(data.draw(owner)[1]) + COMPLETION
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert [*format.head.ids, *ids[0].tolist()] == inputs["input_ids"][0].tolist()
        hidden = forward.documents(states, torch.tensor([owner]), ids, torch.tensor([shared]))
        torch.testing.assert_close(forward.logits(hidden)[0], reference, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_caption_sees_the_image_and_nothing_of_the_preamble(model, processor, organism):
    example = Spatial(split="probe", size=1, world=organism.name)[0]
    format, forward = Format(processor, PROMPT_STYLES["base"], organism.world), FastForward(model)
    text = "The red circle: x1 y2."
    inputs = processor(
        text=["<|vision_start|><|image_pad|><|vision_end|>" + text], images=[example.images[0]], return_tensors="pt"
    )
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    states = forward.head(format.head, forward.images(to_patches(example.images)))
    hidden = forward.documents(states, torch.tensor([0]), ids, torch.tensor([format.head.image_end]))
    reference = model(**inputs).logits[0, format.head.image_end :]
    torch.testing.assert_close(forward.logits(hidden)[0], reference, rtol=0, atol=1e-4)


def test_patches_are_the_processors(processor, organism):
    pictures = [example.images[0] for example in Spatial(split="probe", size=2, world=organism.name)]
    reference = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    # The processor repeats each frame: [2 pictures x 64 patches (micro 256), 3 colours, 2 frames, 14 x 14].
    patches = 4 * organism.world.tokens_per_side**2
    frames = reference.view(2, patches, 3, 2, 196)
    torch.testing.assert_close(to_patches(pictures).view(2, patches, 3, 196), frames[:, :, :, 0], rtol=0, atol=1e-5)
    assert torch.equal(frames[:, :, :, 0], frames[:, :, :, 1])
