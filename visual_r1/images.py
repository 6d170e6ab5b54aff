"""Images are fitted to the model's pixel grid before any engine or trainer sees them.

Each engine and each trainer resizes by its own settings; what is on the grid already, none of them changes. So all
count the same image tokens and see the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

_MAX_ASPECT_RATIO = 200
"""Qwen's processors refuse what is longer."""


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """How large an image may be, and the grid that its sides lie on.

    Raises:
        ValueError: the limits leave room for no image.
    """

    min_pixels: int
    """Pixels (width x height); a smaller image is enlarged."""
    max_pixels: int
    """Pixels (width x height); a larger image is shrunk."""
    factor: int
    """Sides are multiples of this: the patch size times the patches that merge into one token, 28 or 32."""

    def __post_init__(self) -> None:
        if self.factor < 1 or self.min_pixels < 1:
            raise ValueError(f"factor={self.factor}, min_pixels={self.min_pixels}: expected at least 1")
        if self.max_pixels < max(self.min_pixels, self.factor**2):
            raise ValueError(
                f"max_pixels={self.max_pixels}: less than min_pixels={self.min_pixels} or than one token's "
                f"{self.factor} x {self.factor} pixels"
            )

    def fitted_size(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that Qwen's rule (``smart_resize`` of transformers) gives an image.

        Raises:
            ValueError: the image is over 200 times longer than it is wide, or comes out so, or the rule would resize
                what it gave once more, which happens to narrow images and where the limits lie close together.
        """
        fitted = self._resized(width, height)
        if self._resized(*fitted) != fitted:
            raise ValueError(
                f"an image of {width} x {height} pixels finds no size between min_pixels={self.min_pixels} and "
                f"max_pixels={self.max_pixels} on a grid of {self.factor}: lower min_pixels or crop the image"
            )
        return fitted

    def num_tokens(self, width: int, height: int) -> int:
        """The image tokens in the prompt, placeholders that start and end an image not counted."""
        width, height = self.fitted_size(width, height)
        return width * height // self.factor**2

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """One application of the rule."""
        if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
            raise ValueError(
                f"an image of {width} x {height} pixels is too narrow: one side may be {_MAX_ASPECT_RATIO} times the "
                "other; crop or pad it"
            )
        # The rounding is the rule's own: up only where an enlarged image must reach the least number of pixels.
        columns, rows = round(width / self.factor), round(height / self.factor)
        if columns * rows * self.factor**2 > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            columns = max(1, math.floor(width / shrink / self.factor))
            rows = max(1, math.floor(height / shrink / self.factor))
        elif columns * rows * self.factor**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            columns, rows = math.ceil(width * grow / self.factor), math.ceil(height * grow / self.factor)
        return columns * self.factor, rows * self.factor


def fit(image: Image.Image, limits: PixelLimits) -> Image.Image:
    """The image at its fitted size; the very same object when it has that size already.

    By Pillow's bicubic interpolation, as Qwen2-VL's first processor did. Torchvision's, which the newer one uses, is up
    to 2 levels of 255 apart where contrasts are mild, and 22 in noise of full contrast.

    Raises:
        ValueError: see `PixelLimits.fitted_size`.
    """
    size = limits.fitted_size(*image.size)
    if size == image.size:
        return image
    # RGB first, as the processors do: a palette's numbers cannot be interpolated.
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def limits_of(processor: Any, *, max_pixels: int | None = None, min_pixels: int | None = None) -> PixelLimits:
    """The limits under which a checkpoint's processor has nothing left to resize.

    Args:
        processor: of the Qwen2-VL, Qwen2.5-VL or Qwen3-VL family.
        max_pixels: a ceiling beside the checkpoint's own; the lower of the two holds, because the processor would
            shrink again what is over its own. None leaves the checkpoint's.
        min_pixels: a floor beside the checkpoint's own; the higher of the two holds. None leaves the checkpoint's.

    Raises:
        ValueError: another kind of processor, or the floor lies above the ceiling.
    """
    of_images: Any = getattr(processor, "image_processor", None)
    size = getattr(of_images, "size", None) or {}
    try:
        own_min, own_max = int(size["shortest_edge"]), int(size["longest_edge"])
        factor = int(of_images.patch_size) * int(of_images.merge_size)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{type(of_images).__name__}: has no pixel grid as Qwen2-VL's has, so images cannot be fitted to it"
        ) from error
    return PixelLimits(
        min_pixels=max(own_min, min_pixels or 0),
        max_pixels=own_max if max_pixels is None else min(own_max, max_pixels),
        factor=factor,
    )
