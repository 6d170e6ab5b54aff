"""Fitting images to the pixel grid, against the rule and the processor of transformers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from visual_r1.images import PixelLimits, fit, limits_of

PAPER = PixelLimits(min_pixels=56 * 56, max_pixels=401_408, factor=28)
QWEN3 = PixelLimits(min_pixels=256 * 256, max_pixels=401_408, factor=32)
SIZES = (
    *((336, 224), (640, 480), (1024, 768), (2000, 1500), (833, 777), (1500, 90)),
    *((28, 28), (56, 56), (20, 30), (5, 300), (84, 57), (1, 1)),
)


def picture(width, height, mode="RGB"):
    """Noise of half the contrast: a smooth image would hide differences, and what overshoots is cut at other places."""
    levels = numpy.random.default_rng(0).integers(64, 192, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(levels).convert(mode)


def processor(limits, backend=Qwen2VLImageProcessor, **arguments):
    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    return backend(patch_size=limits.factor // 2, merge_size=2, size=size, **arguments)


@pytest.mark.parametrize("limits", [PAPER, QWEN3], ids=["factor-28", "factor-32"])
@settings(max_examples=500, deadline=None)
@given(width=st.integers(1, 6000), height=st.integers(1, 6000))
def test_the_size_is_that_of_the_rule_and_stays(limits, width, height):
    try:
        size = limits.fitted_size(width, height)
    except ValueError:
        assert max(width, height) > 50 * min(width, height)  # only what is very narrow finds no place
        return
    expected = smart_resize(height, width, limits.factor, limits.min_pixels, limits.max_pixels)
    assert size == expected[::-1]
    assert limits.fitted_size(*size) == size
    assert limits.min_pixels <= size[0] * size[1] <= limits.max_pixels
    assert limits.num_tokens(width, height) * limits.factor**2 == size[0] * size[1]


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        pytest.param((336, 224), 12 * 8, id="on-the-grid"),
        pytest.param((640, 480), 23 * 17, id="rounded"),
        pytest.param((896, 448), 512, id="the-maximum"),
        pytest.param((8960, 4480), 512, id="shrunk-to-the-maximum"),
        pytest.param((1, 1), 4, id="enlarged-to-the-minimum"),
    ],
)
def test_tokens_by_hand(size, tokens):
    assert PAPER.num_tokens(*size) == tokens


@pytest.mark.parametrize("limits", [PAPER, QWEN3], ids=["factor-28", "factor-32"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_processor_finds_nothing_to_resize(limits, size):
    image = picture(*size)
    fitted = fit(image, limits)
    resizing = processor(limits)(images=[fitted], return_tensors="pt")
    taking = processor(limits, do_resize=False)(images=[fitted], return_tensors="pt")
    assert torch.equal(resizing["pixel_values"], taking["pixel_values"])
    assert torch.equal(resizing["image_grid_thw"], taking["image_grid_thw"])
    assert resizing["image_grid_thw"].prod().item() // 4 == limits.num_tokens(*size)

    # Against the processor's own resizing of the image as it came: the same tokens, and Pillow's pixels.
    for backend, levels in ((Qwen2VLImageProcessorPil, 1e-3), (Qwen2VLImageProcessor, 2.001)):
        alone = processor(limits, backend)(images=[image], return_tensors="pt")
        assert torch.equal(alone["image_grid_thw"], resizing["image_grid_thw"])
        difference = (alone["pixel_values"] - resizing["pixel_values"]) * deviations(limits) * 255
        assert difference.abs().max() < levels and difference.abs().mean() < levels / 5


def deviations(limits):
    """What the processor divided each value of a patch by."""
    return torch.tensor(processor(limits).image_std).repeat_interleave(2 * (limits.factor // 2) ** 2)


def test_an_image_in_place_is_the_same_object():
    image = picture(336, 224)
    assert fit(image, PAPER) is image
    assert fit(fit(picture(640, 480), PAPER), PAPER).size == (644, 476)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_mode_is_resized_as_rgb(mode):
    image = picture(300, 200, mode)
    fitted = fit(image, PAPER)
    assert fitted.mode == "RGB"
    assert fitted.tobytes() == fit(image.convert("RGB"), PAPER).tobytes()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        pytest.param((2010, 10), "an image of 2010 x 10 pixels is too narrow", id="over-200"),
        pytest.param((10, 2001), "an image of 10 x 2001 pixels is too narrow", id="tall"),
        # 10000 x 50 is shrunk to 8960 x 28, which is 320 times longer than wide.
        pytest.param((10_000, 50), "an image of 8960 x 28 pixels is too narrow", id="narrow-once-shrunk"),
    ],
)
def test_a_narrow_image_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        fit(Image.new("RGB", size), PAPER)
    assert PAPER.num_tokens(2000, 10) > 0


def test_limits_without_a_size_between_them_are_named():
    close = PixelLimits(min_pixels=28 * 28 * 64, max_pixels=28 * 28 * 64, factor=28)
    assert close.fitted_size(500, 500) == (224, 224)
    with pytest.raises(
        ValueError, match="500 x 300 pixels finds no size between min_pixels=50176 and max_pixels=50176"
    ):
        close.fitted_size(500, 300)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_pixels": 0}, "min_pixels=0: expected at least 1"),
        ({"factor": 0}, "factor=0"),
        ({"max_pixels": 700}, "max_pixels=700: less than min_pixels"),
        ({"min_pixels": 10, "max_pixels": 700}, "one token's 28 x 28 pixels"),
    ],
    ids=str,
)
def test_limits_that_admit_nothing_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        PixelLimits(**{"min_pixels": 3136, "max_pixels": 401_408, "factor": 28, **limits})


def test_limits_are_those_of_the_processor_and_narrower():
    of_checkpoint = SimpleNamespace(image_processor=processor(PAPER))
    assert limits_of(of_checkpoint) == PAPER
    assert limits_of(of_checkpoint, max_pixels=200_704).max_pixels == 200_704
    assert limits_of(of_checkpoint, max_pixels=10**9) == PAPER  # the processor would shrink again what is above its own
    assert limits_of(of_checkpoint, min_pixels=10_000).min_pixels == 10_000
    assert limits_of(of_checkpoint, min_pixels=1) == PAPER
    assert limits_of(SimpleNamespace(image_processor=processor(QWEN3))).factor == 32
    with pytest.raises(ValueError, match="max_pixels=1000: less than min_pixels=3136"):
        limits_of(of_checkpoint, max_pixels=1000)


@pytest.mark.parametrize(
    "kind", [SimpleNamespace(), SimpleNamespace(image_processor=SimpleNamespace(size={"height": 1}))]
)
def test_another_kind_of_processor_is_refused(kind):
    with pytest.raises(ValueError, match="no pixel grid"):
        limits_of(kind)
