"""How the solids of micro's world look through a camera: flat shading, the light from above and in front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import ImageDraw

from visual_r1.organisms.camera import Camera, Spot

Point = tuple[float, float]
Corner = tuple[float, float, float]
"""Right and ahead of the foot's middle, and up, in widths of the solid."""
Tint = Callable[[float], tuple[int, ...] | int]
"""The colour of a face, given its brightness from 0 to 1."""

SOLIDS = ("ball", "cube", "cone", "cylinder", "pyramid", "slab", "pillar", "ring", "house")
"""Their plurals end in s."""
_TOP, _FRONT, _BESIDE = 1.0, 0.86, 0.7
_ROUND = [(cos(2 * pi * step / 24) / 2, sin(2 * pi * step / 24) / 2) for step in range(24)]
"""A circle of one width."""
_PRISMS = {"cube": (1.0, 1.0, 1.0), "slab": (1.5, 1.0, 0.35), "pillar": (0.6, 0.6, 1.7)}
"""Right, ahead and up, in widths."""


def height(shape: str) -> float:
    """Of a solid, in widths."""
    return {"cone": 1.3, "cylinder": 1.2, "pyramid": 1.2, "house": 1.25, "slab": 0.35, "pillar": 1.7}.get(shape, 1.0)


def paint(
    draw: ImageDraw.ImageDraw, camera: Camera, shape: str, spot: Spot, tint: Tint, outline: tuple[int, ...] | int
) -> None:
    """Draws one solid over what is there."""

    def place(corner: Corner) -> Point:
        right, ahead, up = corner
        return camera.project(spot.right + right * spot.width, up * spot.width, spot.ahead + ahead * spot.width)

    if shape in ("ball", "cone", "cylinder", "ring"):
        _paint_round(draw, shape, place, tint, outline)
        return
    for brightness, face in _faces(shape):
        points = [place(corner) for corner in face]
        if _area(points) > 0:
            draw.polygon(points, fill=tint(brightness), outline=outline)


def outline(camera: Camera, shape: str, spot: Spot) -> tuple[float, float, float, float]:
    """A box in pixels (left, top, right, bottom) that holds the whole solid."""
    half = max(_PRISMS.get(shape, (1.0, 1.0, 1.0))[:2]) / 2 * spot.width
    corners = [
        camera.project(spot.right + right, up, spot.ahead + ahead)
        for right in (-half, half)
        for ahead in (-half, half)
        for up in (0.0, height(shape) * spot.width)
    ]
    across, down = zip(*corners, strict=True)
    return min(across), min(down), max(across), max(down)


def _paint_round(
    draw: ImageDraw.ImageDraw, shape: str, place: Callable[[Corner], Point], tint: Tint, outline: tuple[int, ...] | int
) -> None:
    foot = [place((x, z, 0.0)) for x, z in _ROUND]
    if shape == "cone":
        draw.polygon(_hull([*foot, place((0.0, 0.0, height(shape)))]), fill=tint(_FRONT), outline=outline)
    elif shape == "cylinder":
        lid = [place((x, z, height(shape))) for x, z in _ROUND]
        draw.polygon(_hull(foot + lid), fill=tint(_FRONT), outline=outline)
        draw.polygon(lid, fill=tint(_TOP), outline=outline)
    elif shape == "ball":
        # The silhouette of a sphere is as good as a circle so near to the middle of the view.
        (x, y), (side, _) = place((0.0, 0.0, 0.5)), place((0.5, 0.0, 0.5))
        radius = side - x
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=tint(_FRONT), outline=outline)
        x, y, radius = x - 0.25 * radius, y - 0.35 * radius, 0.45 * radius
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=tint(_TOP))
    else:
        outer = [place((x, 0.0, 0.5 + z)) for x, z in _ROUND]
        inner = [place((0.55 * x, 0.0, 0.5 + 0.55 * z)) for x, z in _ROUND]
        for step in range(len(outer)):
            draw.polygon([outer[step - 1], outer[step], inner[step], inner[step - 1]], fill=tint(0.93))
        for edge in (outer, inner):
            draw.line([*edge, edge[0]], fill=outline)


@cache
def _faces(shape: str) -> Sequence[tuple[float, Sequence[Corner]]]:
    """Brightness and corners of each face of a convex body; seen from outside, the corners go round clockwise."""
    if shape == "pyramid":
        foot = [(-0.5, -0.5, 0.0), (0.5, -0.5, 0.0), (0.5, 0.5, 0.0), (-0.5, 0.5, 0.0)]
        apex = (0.0, 0.0, height(shape))
        sides = [(foot[step], apex, foot[(step + 1) % 4]) for step in range(4)]
        return list(zip((_FRONT, _BESIDE, _FRONT, _BESIDE), sides, strict=True))
    if shape == "house":
        wall, ridge = 0.7, height(shape)
        front = [(-0.5, 0.0), (-0.5, wall), (0.0, ridge), (0.5, wall), (0.5, 0.0)]
        return _prism(front, 0.5, (_BESIDE, _TOP, _TOP, _BESIDE))
    right, ahead, up = _PRISMS[shape]
    front = [(-right / 2, 0.0), (-right / 2, up), (right / 2, up), (right / 2, 0.0)]
    return _prism(front, ahead / 2, (_BESIDE, _TOP, _BESIDE))


def _prism(front: Sequence[Point], half: float, brightness: Iterable[float]) -> list[tuple[float, Sequence[Corner]]]:
    """A front (right and up, clockwise from the left foot) drawn out to the back; the floor is left out."""
    near = [(x, -half, y) for x, y in front]
    far = [(x, half, y) for x, y in front]
    sides = [(near[step], far[step], far[step + 1], near[step + 1]) for step in range(len(front) - 1)]
    return [(_FRONT, near), *zip(brightness, sides, strict=True)]


def _area(points: Sequence[Point]) -> float:
    """Twice the area of a polygon on the screen; negative when its corners go round counterclockwise."""
    following = [*points[1:], points[0]]
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(points, following, strict=True))


def _hull(points: Sequence[Point]) -> list[Point]:
    """The convex hull (Andrew's monotone chain)."""
    ordered = sorted(points)
    chains = []
    for run in (ordered, ordered[::-1]):
        chain: list[Point] = []
        for point in run:
            while len(chain) > 1 and _area([chain[-2], chain[-1], point]) <= 0:
                chain.pop()
            chain.append(point)
        chains.append(chain[:-1])
    return chains[0] + chains[1]


def ground(camera: Camera) -> np.ndarray:
    """Tiles of one metre under a sky, uint8 ``[side, side, 3]``; the light changes with the place.

    Qwen2-VL embeds no absolute position, so a flat background would leave a vision tower blind to where an object is.
    """
    right, ahead = np.moveaxis(camera.ground(), -1, 0)
    down = np.linspace(0, 1, camera.side)[:, None] + np.zeros((1, camera.side))
    across = np.linspace(0, 1, camera.side)[None, :] + np.zeros((camera.side, 1))
    sky = np.stack([140 + 60 * across, 190 + 30 * down, 235 - 20 * across], axis=-1)
    is_sky = ~(ahead < 60)
    tiles = (np.floor(np.where(is_sky, 0, right)) + np.floor(np.where(is_sky, 0, ahead))) % 2
    # Far tiles are smaller than pixels; they fade.
    tone = np.where(is_sky, 0, 14 * (tiles - 0.5) * np.clip(6 / np.maximum(np.where(is_sky, 1, ahead), 1), 0, 1))
    floor = np.stack([70 + 110 * down, 105 + 60 * (1 - across) * (1 - down), 75 + 100 * across], axis=-1)
    return np.where(is_sky[..., None], sky, floor + tone[..., None]).clip(0, 255).astype(np.uint8)
