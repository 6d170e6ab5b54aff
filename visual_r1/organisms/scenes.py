"""The worlds of the model organisms: coloured things on a ground that runs from far to near.

nano's is flat: shapes in 112x112 pictures, one in an image token at most. micro's is seen by a camera: solids on level
ground in 224x224 pictures, smaller when they are farther, the nearer ones before the farther ones.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import hypot

import numpy as np
from PIL import Image, ImageDraw

from visual_r1.organisms import solids
from visual_r1.organisms.camera import Camera, Spot

CELL = 14
"""Side of a cell in pixels, which is a patch's. Columns and rows of cells are numbered from the top left."""
JITTER = 5
"""Pixels by which a flat object's centre may lie off the middle of its cell, along either axis. Two from a cell's edge,
it is hard to tell in which one it lies, so that careful readings err now and then."""
CELL_METRES = 0.5
"""Side of a cell of the ground; distances to the camera are read in the same unit."""
_LEFT, _NEAR = -3.0, 2.0
"""Where the cells of the ground begin, in metres right and ahead of the camera's foot."""
_OUTLINE = (40, 40, 40)
_LEAST_VISIBLE = 0.4
"""Share of its own pixels that each thing shows: what is hidden further could be neither found nor counted."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What pictures may show and in which numbers their places are told.

    An axis is a letter that stands before a number in texts: x and y count columns and rows of the picture. With a
    camera, u and v count cells of the ground to the right and ahead, and d half metres from the camera.
    """

    name: str
    side: int
    """Of a picture, in pixels: a multiple of 28, the side of an image token."""
    colors: Mapping[str, tuple[int, int, int]] = field(hash=False)
    shapes: tuple[str, ...]
    object_counts: tuple[int, ...]
    """How many objects a scene may hold; a number that stands twice is twice as likely."""
    camera: Camera | None
    """None: things lie flat in the picture and what is lower is nearer."""
    num_cells: Mapping[str, int] = field(hash=False)
    """Of each axis, in the order in which a text names them: its numbers run from 0 to one less."""
    pair_cells: int
    """The most cells between two objects that a question compares."""
    distance_gap: tuple[float, float]
    """By how much the two distances of a question differ, at least and at most: in pixels, with a camera in metres."""
    new_pairs: frozenset[tuple[str, str]]
    """Colours with shapes that only the split of unseen combinations shows."""

    @property
    def tokens_per_side(self) -> int:
        """Image tokens along one side; each covers 2x2 cells."""
        return self.side // (2 * CELL)

    @property
    def depth_axis(self) -> str:
        """What tells nearer from farther: y grows towards the viewer, d away from it."""
        return "y" if self.camera is None else "d"

    @property
    def plane_axes(self) -> tuple[str, str]:
        """The two axes of the plane in which things are close or far apart."""
        return ("x", "y") if self.camera is None else ("u", "v")

    def middle(self, axis: str) -> float:
        """Half way along an axis, as `SceneObject.along` measures it."""
        if axis in ("x", "y"):
            return self.side / 2
        return {"u": 0.0, "v": _NEAR + self.num_cells["v"] * CELL_METRES / 2, "d": 5.5}[axis]


NANO = World(
    name="nano",
    side=112,
    colors={
        "red": (220, 40, 40),
        "green": (30, 170, 60),
        "blue": (50, 80, 235),
        "yellow": (245, 225, 40),
        "purple": (150, 50, 200),
        "orange": (250, 140, 30),
        "white": (252, 252, 252),
        "black": (15, 15, 15),
    },
    shapes=("circle", "square", "triangle"),
    object_counts=(3, 3, 4, 4, 5, 5, 6),
    camera=None,
    num_cells={"x": 8, "y": 8},
    pair_cells=3,
    distance_gap=(14, 40),
    new_pairs=frozenset(),
)

_COLORS = {**NANO.colors, "pink": (255, 160, 190), "cyan": (60, 215, 225)}
MICRO = World(
    name="micro",
    side=224,
    colors=_COLORS,
    shapes=solids.SOLIDS,
    object_counts=(4, 5, 5, 6, 6, 7, 8),
    camera=Camera(height=2.5, pitch=25.0, focal=194.0, side=224),
    num_cells={"x": 16, "y": 16, "u": 12, "v": 12, "d": 18},
    pair_cells=6,
    distance_gap=(0.5, 2.0),
    # A lattice: each shape lacks two colours, each colour one or two shapes.
    new_pairs=frozenset(
        (color, shape)
        for i, color in enumerate(_COLORS)
        for j, shape in enumerate(solids.SOLIDS)
        if (i + 2 * j) % 5 == 0
    ),
)
WORLDS = {world.name: world for world in (NANO, MICRO)}


@dataclass(frozen=True)
class SceneObject:
    """One coloured thing. Its name is unique within its scene; in nano's world its colour is, too."""

    color: str
    shape: str
    x: float
    """Centre in pixels from the left."""
    y: float
    """Centre in pixels from the top."""
    radius: float
    """Half the extent in pixels."""
    spot: Spot | None = None
    """Where it stands on the ground; None in a world without a camera."""
    world: World = NANO

    @property
    def name(self) -> str:
        """What a question calls the object, for example "red circle"."""
        return f"{self.color} {self.shape}"

    def along(self, axis: str) -> float:
        """Where it is along an axis: in pixels for x and y, in metres for u, v and d."""
        if axis in ("x", "y"):
            return getattr(self, axis)
        assert self.spot is not None and self.world.camera is not None, f"{self.name} stands on no ground"
        if axis == "d":
            return self.world.camera.distance(self.spot)
        return {"u": self.spot.right, "v": self.spot.ahead}[axis]

    def cell(self, axis: str) -> int:
        """The number that texts tell of it along an axis."""
        if axis in ("x", "y"):
            return int(self.along(axis) // CELL)
        return int((self.along(axis) - {"u": _LEFT, "v": _NEAR, "d": 0.0}[axis]) // CELL_METRES)

    @property
    def column(self) -> int:
        """Column of the cell that holds the centre, 0 at the left."""
        return self.cell("x")

    @property
    def row(self) -> int:
        """Row of the cell that holds the centre, 0 at the top."""
        return self.cell("y")

    @property
    def image_token(self) -> int:
        """Index of the image token that holds the centre, in reading order."""
        return self.row // 2 * self.world.tokens_per_side + self.column // 2

    def apart(self, other: SceneObject) -> float:
        """Distance from centre to centre in the plane that questions mean: in pixels, with a camera in metres."""
        return hypot(*(self.along(axis) - other.along(axis) for axis in self.world.plane_axes))

    def moved_to(self, other: SceneObject) -> SceneObject:
        """The same thing at another's place."""
        return replace(self, x=other.x, y=other.y, spot=other.spot)


@dataclass(frozen=True)
class Scene:
    """The objects of one picture."""

    objects: tuple[SceneObject, ...]

    @property
    def world(self) -> World:
        """The world of its objects."""
        return self.objects[0].world

    @property
    def bucket(self) -> int:
        """A number from 0 to 99 that the colours, shapes and cells decide, and the jitter within a cell does not.

        Splits are ranges of buckets, so two scenes that differ by less than a cell are never in different splits.
        """
        across, down = self.world.plane_axes
        content = ";".join(sorted(f"{thing.name} {thing.cell(across)} {thing.cell(down)}" for thing in self.objects))
        return zlib.crc32(content.encode()) % 100

    def render(self) -> Image.Image:
        """Draws the scene, far objects first so that near ones may cover them."""
        world = self.world
        if world.camera is not None:
            return self._render_solids(world, world.camera)
        picture = Image.fromarray(_background(world).copy())
        draw = ImageDraw.Draw(picture)
        for thing in sorted(self.objects, key=lambda thing: thing.y):
            x, y, radius, fill = thing.x, thing.y, thing.radius, world.colors[thing.color]
            if thing.shape == "circle":
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=_OUTLINE)
            elif thing.shape == "square":
                side = 0.88 * radius
                draw.rectangle([x - side, y - side, x + side, y + side], fill=fill, outline=_OUTLINE)
            else:
                top, base, half = y - 1.1 * radius, y + 0.8 * radius, 1.05 * radius
                draw.polygon([(x, top), (x - half, base), (x + half, base)], fill=fill, outline=_OUTLINE)
        return picture

    def visible_shares(self) -> list[float]:
        """How much of each object nothing nearer covers, 0 to 1; 1 for all in a world without a camera."""
        shown, alone = self._pixels()
        return [
            1.0 if area is None else float((shown == number).sum()) / area for number, area in enumerate(alone, start=1)
        ]

    def token_objects(self) -> dict[int, SceneObject]:
        """The object that each image token is to tell of, by the token's index; tokens of none are left out.

        Without a camera it is the object whose centre the token holds. With one, a token may show parts of several:
        it tells of that one of which it shows the largest part, so that a small thing is not lost beside the edge of a
        large one, and of none if that is less than a tenth of the thing.
        """
        world = self.world
        if world.camera is None:
            return {thing.image_token: thing for thing in self.objects}
        shown, _ = self._pixels()
        tokens = world.tokens_per_side
        blocks = shown.reshape(tokens, 2 * CELL, tokens, 2 * CELL).swapaxes(1, 2).reshape(tokens**2, -1)
        counts = np.stack([(blocks == number).sum(1) for number in range(1, len(self.objects) + 1)])
        parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        best = parts.argmax(0)
        return {token: self.objects[best[token]] for token in range(tokens**2) if parts[best[token], token] >= 0.1}

    def _pixels(self) -> tuple[np.ndarray, list[int | None]]:
        """Which object each pixel shows (its place in `objects` from 1, 0 for none), and the pixels of each alone."""
        camera = self.world.camera
        shown = Image.new("L", (self.world.side, self.world.side))
        if camera is None:
            return np.asarray(shown), [None] * len(self.objects)
        draw = ImageDraw.Draw(shown)
        alone: list[int | None] = [None] * len(self.objects)
        for number, thing in sorted(enumerate(self.objects, start=1), key=lambda pair: -pair[1].along("d")):
            assert thing.spot is not None
            tint = _flat(number)
            solids.paint(draw, camera, thing.shape, thing.spot, tint, number)
            single = Image.new("L", shown.size)
            solids.paint(ImageDraw.Draw(single), camera, thing.shape, thing.spot, tint, number)
            alone[number - 1] = shown.size[0] * shown.size[1] - single.histogram()[0]
        return np.asarray(shown), alone

    def _render_solids(self, world: World, camera: Camera) -> Image.Image:
        # Drawn at twice the size, for smooth edges.
        picture = Image.fromarray(_background(world).copy())
        draw = ImageDraw.Draw(picture)
        for thing in sorted(self.objects, key=lambda thing: -thing.along("d")):
            assert thing.spot is not None
            tint = _shaded(world.colors[thing.color])
            solids.paint(draw, camera.enlarged(2), thing.shape, thing.spot, tint, _OUTLINE)
        return picture.reduce(2)


def draw_scene(rng: random.Random, world: World = NANO, *, of_new_pairs: bool = False) -> Scene:
    """Draws a random scene, of the combinations of colour and shape that training shows, or of new ones only."""
    return _draw_flat(rng, world) if world.camera is None else _draw_solids(rng, world, world.camera, of_new_pairs)


def _draw_flat(rng: random.Random, world: World) -> Scene:
    """No two objects have one colour or lie within one image token."""
    count = rng.choice(world.object_counts)
    colors = rng.sample(list(world.colors), count)
    favourite = _favourite(rng, world)
    tokens = rng.sample(range(world.tokens_per_side**2), count)
    objects = []
    for color, token in zip(colors, tokens, strict=True):
        shape = favourite if favourite and rng.random() < 0.6 else rng.choice(world.shapes)
        column = 2 * (token % world.tokens_per_side) + rng.randrange(2)
        row = 2 * (token // world.tokens_per_side) + rng.randrange(2)
        x = (column + 0.5) * CELL + rng.uniform(-JITTER, JITTER)
        y = (row + 0.5) * CELL + rng.uniform(-JITTER, JITTER)
        radius = 4.6 + 2.2 * y / world.side + rng.uniform(-0.3, 0.3)
        objects.append(SceneObject(color, shape, x, y, radius, world=world))
    return Scene(tuple(objects))


def _draw_solids(rng: random.Random, world: World, camera: Camera, of_new_pairs: bool) -> Scene:
    """No two objects have one name or touch, none is cut by the picture's edge, each shows 40 % of itself or more."""
    pairs = [
        (color, shape)
        for color in world.colors
        for shape in world.shapes
        if ((color, shape) in world.new_pairs) == of_new_pairs
    ]
    while True:
        count = rng.choice(world.object_counts)
        favourite = _favourite(rng, world)
        objects: list[SceneObject] = []
        while len(objects) < count:
            thing = _draw_solid(rng, world, camera, favourite, pairs)
            if thing is not None and all(_are_apart(thing, other) for other in objects):
                objects.append(thing)
        scene = Scene(tuple(objects))
        if min(scene.visible_shares()) >= _LEAST_VISIBLE:
            return scene


def _draw_solid(
    rng: random.Random, world: World, camera: Camera, favourite: str | None, pairs: list[tuple[str, str]]
) -> SceneObject | None:
    """A solid anywhere on the ground; None when the picture does not hold all of it."""
    if favourite and rng.random() < 0.5:
        pairs = [pair for pair in pairs if pair[1] == favourite]
    color, shape = rng.choice(pairs)
    # As much of a cell as in the flat world.
    jitter = JITTER / CELL * CELL_METRES
    right, ahead = (
        start + (rng.randrange(world.num_cells[axis]) + 0.5) * CELL_METRES + rng.uniform(-jitter, jitter)
        for axis, start in (("u", _LEFT), ("v", _NEAR))
    )
    spot = Spot(right, ahead, width=rng.uniform(0.42, 0.72))
    left, top, end, bottom = solids.outline(camera, shape, spot)
    if min(left, top) < 1 or max(end, bottom) > world.side - 2:
        return None
    up = solids.height(shape) * spot.width / 2
    x, y = camera.project(right, up, ahead)
    return SceneObject(color, shape, x, y, camera.focal * spot.width / camera.depth(up, ahead) / 2, spot, world)


def _are_apart(first: SceneObject, second: SceneObject) -> bool:
    assert first.spot is not None and second.spot is not None
    return first.name != second.name and first.apart(second) > 0.8 * (first.spot.width + second.spot.width)


def _favourite(rng: random.Random, world: World) -> str | None:
    """Shapes drawn evenly are seldom alike, and every count would be 1 or 2: half of the scenes favour one shape."""
    return rng.choice(world.shapes) if rng.random() < 0.5 else None


def _flat(number: int) -> solids.Tint:
    return lambda brightness: number


def _shaded(color: tuple[int, int, int]) -> solids.Tint:
    return lambda brightness: tuple(int(part * brightness) for part in color)


@cache
def _background(world: World) -> np.ndarray:
    """What stands behind all objects, uint8 ``[height, width, 3]``; with a camera at twice the picture's size.

    Qwen2-VL embeds no absolute position, so a flat background would leave a vision tower blind to where an object is.
    """
    if world.camera is not None:
        return solids.ground(world.camera.enlarged(2))
    # The ground brightens towards the viewer and from left to right.
    down = np.linspace(0, 1, world.side)[:, None]
    right = np.linspace(0, 1, world.side)[None, :]
    red, green, blue = 60 + 140 * down + 0 * right, 110 + 60 * (1 - right) * (1 - down), 60 + 0 * down + 140 * right
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)
