"""An image becomes loaded RGB pixels, whatever it was stored as, or one line that says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.tables import PHOTOGRAPH, encoded, scene
from visual_r1.datasets.decoding import MAX_ASPECT_RATIO, decode_image, decode_images, stored_sizes

WHITE = (255, 255, 255)
BYTES = PHOTOGRAPH.read_bytes()


@pytest.fixture
def photograph():
    with Image.open(PHOTOGRAPH) as image:
        return image.convert("RGB")


def decoded(value, folder=Path()):
    return decode_image(value, folder=folder, name="row: its image")


STORED = {
    "bytes": BYTES,
    "absolute path": str(PHOTOGRAPH),
    "relative path": PHOTOGRAPH.name,
    "struct of bytes": {"bytes": BYTES, "path": "elsewhere.jpg"},
    "struct of a path": {"bytes": None, "path": PHOTOGRAPH.name},
    "picture": Image.open(PHOTOGRAPH),
}


@pytest.mark.parametrize("value", STORED.values(), ids=STORED)
def test_every_way_to_store_an_image_gives_the_same_pixels(value, photograph):
    image = decoded(value, folder=PHOTOGRAPH.parent)
    assert type(image) is Image.Image and image.mode == "RGB" and image.info == {}
    assert image.tobytes() == photograph.tobytes()


def test_a_row_has_one_image_or_several():
    folder = PHOTOGRAPH.parent
    assert len(decode_images(BYTES, folder=folder, example_id="row")) == 1
    pair = decode_images([{"bytes": scene(0)[0], "path": None}, PHOTOGRAPH.name], folder=folder, example_id="row")
    assert [image.size for image in pair] == [(112, 112), (512, 600)]


def test_orientation_is_applied(photograph):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = decoded(encoded(photograph, "JPEG", quality=95, exif=exif))
    assert image.size == (600, 512)
    turned = np.asarray(photograph.rotate(-90, expand=True), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - turned).mean() < 3
    assert ImageOps.exif_transpose(image).size == (600, 512)  # nobody turns it a second time


def test_orientation_that_cannot_be_read_is_no_reason_to_refuse(photograph):
    image = decoded(encoded(photograph, "JPEG", exif=b"Exif\0\0not a table of tags"))
    assert image.size == photograph.size


def palette(**options):
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30] * 256)
    return encoded(image, "PNG", **options)


MODES = {
    "palette": (palette(), (10, 20, 30)),
    "palette with a transparent colour": (palette(transparency=0), WHITE),
    "transparent": (encoded(Image.new("RGBA", (4, 4), (200, 0, 0, 0)), "PNG"), WHITE),
    "half transparent": (encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "grey": (encoded(Image.new("L", (4, 4), 7), "PNG"), (7, 7, 7)),
    "grey and transparent": (encoded(Image.new("LA", (4, 4), (0, 0)), "PNG"), WHITE),
    "grey with a transparent value": (encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7), WHITE),
    "black and white": (encoded(Image.new("1", (4, 4), 1), "PNG"), WHITE),
    "16-bit grey": (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG"), (155, 155, 155)),
    "CMYK": (encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF"), WHITE),
    "the first frame": (
        encoded(
            Image.new("RGB", (4, 4), (255, 0, 0)),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (4, 4), (0, 0, 255))],
        ),
        (255, 0, 0),
    ),
}


@pytest.mark.parametrize(("data", "colour"), MODES.values(), ids=MODES)
def test_every_mode_becomes_rgb(data, colour):
    image = decoded(data)
    assert image.mode == "RGB" and image.size == (4, 4)
    assert image.getpixel((1, 1)) == colour


def png(width, height):
    return encoded(Image.new("1", (width, height)), "PNG")


UNUSABLE = {
    "missing": ("nine.jpg", r"is missing: there is no file .*nine\.jpg"),
    "a folder": (".", "cannot be decoded"),
    "nothing": (None, "is empty"),
    "no bytes": (b"", "is empty"),
    "an empty struct": ({"bytes": None, "path": None}, "is empty"),
    "a number": (3, "is stored as int"),
    "a link": ("http://images.example.org/1.jpg", "is a link"),
    "no path at all": ("a\0b", "cannot be decoded"),
    "text": (b"<html>404</html>", "in no image format"),
    "a JPEG cut in half": (BYTES[: len(BYTES) // 2], "cannot be decoded.*truncated"),
    "a JPEG that lacks its last bytes": (BYTES[:-40], "cannot be decoded.*truncated"),
    "a JPEG cut in its header": (BYTES[:100], "cannot be decoded|no image format"),
    "a PNG cut in half": (scene(0)[0][: len(scene(0)[0]) // 2], "cannot be decoded"),
    "too many pixels": (png(10_000, 9_000), r"10000 x 9000 = 90,000,000 pixels, more than 89,478,485"),
    "far too many pixels": (png(20_000, 9_000), r"over 178,956,970 pixels, more than 89,478,485"),
    "too long": (png(1, MAX_ASPECT_RATIO + 1), "1 x 201, over 200 times longer than wide"),
    "pixels of unknown range": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "range is unknown"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("value", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_image_says_why_in_one_line(value, message, tmp_path):
    with pytest.raises(ValueError, match=f"^row: its image.*{message}") as refused:
        decoded(value, folder=tmp_path)
    assert "\n" not in str(refused.value)


def test_the_longest_image_that_qwen_takes_is_taken():
    assert decoded(png(1, MAX_ASPECT_RATIO)).size == (1, MAX_ASPECT_RATIO)


@pytest.mark.parametrize("stored", [None, []], ids=["none", "empty list"])
def test_a_row_without_an_image_is_named(stored):
    for function in (decode_images, stored_sizes):
        with pytest.raises(ValueError, match="row: has no image"):
            function(stored, folder=Path(), example_id="row")


def test_the_bad_one_of_several_images_is_named():
    with pytest.raises(ValueError, match="row: image 2 of 2 is missing"):
        decode_images([BYTES, "nine.jpg"], folder=Path("nowhere"), example_id="row")


def test_sizes_are_found_without_reading(tmp_path):
    (tmp_path / "huge.jpg").touch()
    with (tmp_path / "huge.jpg").open("r+b") as file:
        file.truncate(10**12)  # takes no room, and could not be read
    stored = ["huge.jpg", {"bytes": None, "path": "huge.jpg"}, {"bytes": 7, "path": "x"}, 5]
    assert stored_sizes(stored, folder=tmp_path, example_id="row") == [10**12, 10**12, 7, 5]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nine.jpg", "is missing"),
        (".", "is missing"),
        ("a\0b", "is missing"),
        ("http://x.org/1.jpg", "is a link"),
        (0, "is empty"),
        ({"bytes": None, "path": None}, "is empty"),
        (["x"], "is stored as list"),
    ],
)
def test_what_needs_no_pixels_is_found_without_pixels(value, message, tmp_path):
    with pytest.raises(ValueError, match=f"row: its image {message}"):
        stored_sizes([value], folder=tmp_path, example_id="row")
