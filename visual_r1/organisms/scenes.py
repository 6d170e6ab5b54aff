"""The world of the model organism: 112x112 pictures of coloured shapes on a ground that runs from far to near."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 112
"""Side of a picture in pixels: 8x8 patches of 14 pixels, 4x4 image tokens of 28 pixels."""
CELL = 14
"""Side of a cell in pixels. Columns and rows of cells are numbered 0 to 7 from the top left."""
TOKENS_PER_SIDE = 4
"""Image tokens along one side; each covers 2x2 cells."""

COLORS = {
    "red": (220, 40, 40),
    "green": (30, 170, 60),
    "blue": (50, 80, 235),
    "yellow": (245, 225, 40),
    "purple": (150, 50, 200),
    "orange": (250, 140, 30),
    "white": (252, 252, 252),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle")
OBJECT_COUNTS = (3, 3, 4, 4, 5, 5, 6)
"""How many objects a scene may hold; a number that stands twice is twice as likely."""
JITTER = 5
"""Pixels by which an object's centre may lie off the middle of its cell, along either axis. Two from a cell's edge, it
is hard to tell in which one it lies, so that careful readings err now and then."""
_OUTLINE = (40, 40, 40)


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. Its colour is unique within its scene."""

    color: str
    shape: str
    x: float
    """Centre in pixels from the left."""
    y: float
    """Centre in pixels from the top; a larger y is nearer to the camera."""
    radius: float
    """Half the extent in pixels; grows with y as it would in perspective."""

    @property
    def name(self) -> str:
        """What a question calls the object, for example "red circle"."""
        return f"{self.color} {self.shape}"

    @property
    def column(self) -> int:
        """Column of the cell that holds the centre, 0 (left) to 7."""
        return int(self.x // CELL)

    @property
    def row(self) -> int:
        """Row of the cell that holds the centre, 0 (top, far) to 7 (bottom, near)."""
        return int(self.y // CELL)

    @property
    def image_token(self) -> int:
        """Index of the image token that holds the object, 0 to 15 in reading order."""
        return self.row // 2 * TOKENS_PER_SIDE + self.column // 2


@dataclass(frozen=True)
class Scene:
    """The objects of one picture, no two within one image token and no two of one colour."""

    objects: tuple[SceneObject, ...]

    @property
    def bucket(self) -> int:
        """A number from 0 to 99 that the colours, shapes and cells decide, and the jitter of the pixels does not.

        Splits are ranges of buckets, so two scenes that differ by less than a cell are never in different splits.
        """
        content = ";".join(sorted(f"{thing.name} {thing.column} {thing.row}" for thing in self.objects))
        return zlib.crc32(content.encode()) % 100

    def render(self) -> Image.Image:
        """Draws the scene, far objects first so that near ones may cover them."""
        picture = Image.fromarray(_background().copy())
        draw = ImageDraw.Draw(picture)
        for thing in sorted(self.objects, key=lambda thing: thing.y):
            x, y, radius, fill = thing.x, thing.y, thing.radius, COLORS[thing.color]
            if thing.shape == "circle":
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=_OUTLINE)
            elif thing.shape == "square":
                side = 0.88 * radius
                draw.rectangle([x - side, y - side, x + side, y + side], fill=fill, outline=_OUTLINE)
            else:
                top, base, half = y - 1.1 * radius, y + 0.8 * radius, 1.05 * radius
                draw.polygon([(x, top), (x - half, base), (x + half, base)], fill=fill, outline=_OUTLINE)
        return picture


def draw_scene(rng: random.Random) -> Scene:
    """Draws a random scene of three to six objects."""
    count = rng.choice(OBJECT_COUNTS)
    colors = rng.sample(list(COLORS), count)
    # Shapes drawn evenly are seldom alike, and every count would be 1 or 2: half of the scenes favour one shape.
    favourite = rng.choice(SHAPES) if rng.random() < 0.5 else None
    tokens = rng.sample(range(TOKENS_PER_SIDE**2), count)
    objects = []
    for color, token in zip(colors, tokens, strict=True):
        shape = favourite if favourite and rng.random() < 0.6 else rng.choice(SHAPES)
        column = 2 * (token % TOKENS_PER_SIDE) + rng.randrange(2)
        row = 2 * (token // TOKENS_PER_SIDE) + rng.randrange(2)
        x = (column + 0.5) * CELL + rng.uniform(-JITTER, JITTER)
        y = (row + 0.5) * CELL + rng.uniform(-JITTER, JITTER)
        objects.append(SceneObject(color, shape, x, y, radius=4.6 + 2.2 * y / SIZE + rng.uniform(-0.3, 0.3)))
    return Scene(tuple(objects))


@cache
def _background() -> np.ndarray:
    """Ground that brightens towards the viewer and from left to right, uint8 ``[SIZE, SIZE, 3]``.

    Qwen2-VL embeds no absolute position, so a flat background would leave a vision tower blind to where an object is.
    """
    down = np.linspace(0, 1, SIZE)[:, None]
    right = np.linspace(0, 1, SIZE)[None, :]
    red, green, blue = 60 + 140 * down + 0 * right, 110 + 60 * (1 - right) * (1 - down), 60 + 0 * down + 140 * right
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)
