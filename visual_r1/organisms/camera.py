"""A pinhole camera above a level ground, tilted down.

Places are in metres: right and ahead of the camera's foot, and up from the ground.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, hypot, radians, sin

import numpy as np


@dataclass(frozen=True)
class Spot:
    """Where a thing stands on the ground and how wide it is, in metres."""

    right: float
    ahead: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What turns places in metres into pixels."""

    height: float
    """Above the ground, in metres."""
    pitch: float
    """How far it looks down, in degrees below the horizontal."""
    focal: float
    """Focal length in pixels."""
    side: int
    """Side of the picture in pixels; the camera looks at its middle."""

    def project(self, right: float, up: float, ahead: float) -> tuple[float, float]:
        """The pixel (from the left, from the top) that shows a place."""
        deep = self.depth(up, ahead)
        down = (self.height - up) * cos(radians(self.pitch)) - ahead * sin(radians(self.pitch))
        return self.side / 2 + self.focal * right / deep, self.side / 2 + self.focal * down / deep

    def depth(self, up: float, ahead: float) -> float:
        """Metres along the line of sight: a thing of one metre there is ``focal / depth`` pixels wide."""
        return ahead * cos(radians(self.pitch)) + (self.height - up) * sin(radians(self.pitch))

    def distance(self, spot: Spot) -> float:
        """Metres from the camera itself to the place on the ground."""
        return hypot(spot.right, spot.ahead, self.height)

    def enlarged(self, factor: int) -> Camera:
        """The same view in a picture of ``factor`` times the side."""
        return replace(self, focal=self.focal * factor, side=self.side * factor)

    def ground(self) -> np.ndarray:
        """Metres right and ahead that each pixel's centre shows of the ground, ``[side, side, 2]``; NaN in the sky."""
        across = (np.arange(self.side) + 0.5 - self.side / 2) / self.focal
        down = across[:, None]
        tilt = radians(self.pitch)
        # The ray of a pixel falls by `fall` metres and goes `onward` metres for each metre along the line of sight.
        fall, onward = down * cos(tilt) + sin(tilt), cos(tilt) - down * sin(tilt)
        reach = np.where(fall > 1e-3, self.height / np.maximum(fall, 1e-3), np.nan)
        return np.stack([reach * across[None, :], np.broadcast_to(reach * onward, (self.side, self.side))], axis=-1)
