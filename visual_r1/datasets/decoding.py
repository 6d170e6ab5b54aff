"""From a stored image to pixels: a loaded RGB picture that holds no file, or one line that says what is wrong."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Pixels (width x height) of the largest image that is read: where Pillow begins to warn of decompression bombs."""
MAX_ASPECT_RATIO = 200
"""Of the longer side to the shorter; Qwen's processors refuse what is longer (``smart_resize`` of transformers)."""


def decode_images(stored: Any, *, folder: Path, example_id: str) -> tuple[Image.Image, ...]:
    """The pictures of a row.

    Args:
        stored: What the image column holds: one image, or a list of them; see `decode_image`.
        folder: Where relative paths begin.
        example_id: Names the row in messages.

    Raises:
        ValueError: there is no image, or one of them cannot be used.
    """
    return tuple(decode_image(value, folder=folder, name=name) for name, value in _named(stored, example_id))


def stored_sizes(stored: Any, *, folder: Path, example_id: str) -> list[int]:
    """How many bytes each image file of a row has, found without reading one.

    Args:
        stored: As for `decode_images`, with numbers of bytes in the place of bytes
            (`visual_r1.datasets.rows.Rows.outlines`).
        folder: Where relative paths begin.
        example_id: Names the row in messages.

    Raises:
        ValueError: there is no image, or one is empty or missing.
    """
    return [_stored_size(value, folder=folder, name=name) for name, value in _named(stored, example_id)]


def _named(stored: Any, example_id: str) -> list[tuple[str, Any]]:
    """Each image of a row with what messages call it."""
    values = stored if isinstance(stored, list | tuple) else [] if stored is None else [stored]
    if not values:
        raise UnusableImage(f"{example_id}: has no image")
    if len(values) == 1:
        return [(f"{example_id}: its image", values[0])]
    return [(f"{example_id}: image {number} of {len(values)}", value) for number, value in enumerate(values, start=1)]


def decode_image(value: Any, *, folder: Path, name: str) -> Image.Image:
    """A stored image as a loaded RGB picture that holds no file.

    EXIF orientation is applied. Transparency is laid on white, where dropping it would show whatever colour was hidden.
    16-bit grey is scaled to 8 bits, where Pillow would clip nearly all of it to white. Of an animation the first frame
    is read.

    Args:
        value: The bytes of an image file, a path, a struct of both as ``datasets`` stores them (bytes win), or a
            picture.
        folder: Where relative paths begin.
        name: Names the image in messages.

    Raises:
        ValueError: the file is missing, empty, broken, cut off or no image, or it is too large or too long to be used.
    """
    try:
        if isinstance(value, Image.Image):
            return _as_rgb(value, name=name)
        with Image.open(io.BytesIO(_read(value, folder=folder, name=name))) as image:
            return _as_rgb(image, name=name)
    except UnusableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImage(
            f"{name} is in no image format that can be read; replace it or leave the row out"
        ) from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(
            f"{name} has over {2 * MAX_PIXELS:,} pixels, more than {MAX_PIXELS:,}: shrink it"
        ) from error
    # Each of Pillow's readers fails in its own way on broken bytes: OSError, SyntaxError, struct.error, EOFError...
    except Exception as error:
        raise UnusableImage(
            f"{name} cannot be decoded ({_in_short(error)}); replace it or leave the row out"
        ) from error


class UnusableImage(ValueError):
    """An image that no example can be made of."""


def _stored_size(value: Any, *, folder: Path, name: str) -> int:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        path = _path(value, folder=folder, name=name)
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            facts = None
        if facts is None or not stat.S_ISREG(facts.st_mode):
            raise UnusableImage(f"{name} is missing: there is no file {path}")
        value = facts.st_size
    if not value:
        raise UnusableImage(f"{name} is empty")
    if not isinstance(value, int):
        raise UnusableImage(f"{name} is stored as {type(value).__name__}, expected bytes or a path")
    return value


def _read(value: Any, *, folder: Path, name: str) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        path = _path(value, folder=folder, name=name)
        try:
            value = Path(path).read_bytes()
        except FileNotFoundError:
            raise UnusableImage(f"{name} is missing: there is no file {path}") from None
    if not value:
        raise UnusableImage(f"{name} is empty")
    if not isinstance(value, bytes):
        raise UnusableImage(f"{name} is stored as {type(value).__name__}, expected bytes or a path")
    return value


def _path(text: str, *, folder: Path, name: str) -> str:
    # Not pathlib: a table of 100,000 paths would open a second later.
    if "://" in text:
        raise UnusableImage(f"{name} is a link, {text[:100]}; download the images and give their folder")
    return os.path.join(folder, os.path.expanduser(text))


def _as_rgb(image: Image.Image, *, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImage(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than {MAX_PIXELS:,}: shrink it"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnusableImage(f"{name} is {width} x {height}, over {MAX_ASPECT_RATIO} times longer than wide: crop it")
    image.load()
    if ExifTags.Base.Orientation in image.getexif():
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnusableImage(f"{name} has {image.mode} pixels, whose range is unknown: save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
