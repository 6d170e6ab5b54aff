"""The contact sheet: every example has its cell, whatever its shape and words."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from visual_r1.examples import Example
from visual_r1.report.sheet import _wrapped, contact_sheet

COLOURS = ("#ff0000", "#00ff00", "#0000ff")


def example(*colours, question="Which is closer?\n(A) cup\n(B) plate", size=(60, 40)):
    images = tuple(Image.new("RGB", size, colour) for colour in colours)
    return Example(id="x/1", images=images, question=question, choices=("cup", "plate"), solution="B", category="Depth")


def colours_of(path):
    colours = Image.open(path).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    return {colour for _, colour in colours}


def test_every_example_and_every_image_is_there(tmp_path):
    contact_sheet([example(COLOURS[0], COLOURS[1]), example(COLOURS[2])], tmp_path / "sheet.png", num_columns=1)
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours_of(tmp_path / "sheet.png")


def test_columns_and_rows_grow_with_the_examples(tmp_path):
    sizes = []
    for num_examples in (1, 4, 5):
        contact_sheet([example(COLOURS[0])] * num_examples, tmp_path / "sheet.png")
        sizes.append(Image.open(tmp_path / "sheet.png").size)
    one, four, five = sizes
    assert one[0] < four[0] == five[0] and one[1] == four[1] < five[1]


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (2000, 1500)])
def test_any_shape_of_image_fits(tmp_path, size):
    contact_sheet([example(COLOURS[0], size=size)], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width < 400


def test_long_words_and_braces_are_drawn(tmp_path):
    contact_sheet([example(COLOURS[0], question="{" + "w" * 500 + "} and so on")], tmp_path / "sheet.png")


def test_wrapped_lines_keep_every_word():
    text = "Considering the relative positions of the two circles in the image provided, where is the green one?"
    lines = _wrapped(text, ImageFont.load_default(size=13))
    assert len(lines) > 1 and " ".join(lines) == text


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no examples"):
        contact_sheet([], tmp_path / "sheet.png")
