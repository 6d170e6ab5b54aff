"""A claim's figure: what was measured, how sure that is, and where it would have to lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visual_r1.files import replacing

_COLOUR = "#0072B2"
_REGION = "#009E73"
_GREY = "#6E6E6E"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One number of a claim."""

    says: str
    unit: str
    estimate: float
    low: float
    """-inf where there is no interval."""
    high: float
    by_seed: tuple[float, ...]
    above: float
    """Where the claim says that it lies: between this, which may be -inf,"""
    below: float
    """and this, which may be inf."""
    verdict: str


def conditions_figure(bars: Sequence[Bar], path: Path, *, title: str) -> None:
    """Draws each number with its interval and its seeds over the region that the claim names, as SVG.

    Args:
        bars: one at least.
        path: the file.
        title: the claim.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": _GREY,
        "svg.hashsalt": "visual_r1",  # the same numbers give the same file
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 0.6 + 1.05 * len(bars)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(len(bars), 1, squeeze=False)[:, 0]
        for bar, axis in zip(bars, axes, strict=True):
            _draw(axis, bar)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", wrap=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _draw(axis: Any, bar: Bar) -> None:
    known = [value for value in (bar.low, bar.high, bar.above, bar.below, *bar.by_seed) if math.isfinite(value)]
    known += [0.0] if min(known) > 0 else []
    margin = 0.08 * (max(known) - min(known)) or 1.0
    left, right = min(known) - margin, max(known) + margin
    axis.axvspan(max(bar.above, left), min(bar.below, right), color=_REGION, alpha=0.13, lw=0)
    if left < 0 < right:
        axis.axvline(0, color=_GREY, lw=0.8)
    if math.isfinite(bar.low):
        axis.plot([bar.low, bar.high], [0, 0], color=_COLOUR, lw=2.2, solid_capstyle="butt")
    axis.plot(bar.by_seed, [-0.45] * len(bar.by_seed), "|", color=_GREY, markersize=7)
    axis.plot([bar.estimate], [0], "o", color=_COLOUR, markersize=6)
    axis.set_xlim(left, right)
    axis.set_ylim(-0.9, 0.7)
    axis.set_yticks([])
    axis.set_title(f"{bar.says}: {bar.verdict}", loc="left", fontsize=9)
    axis.set_xlabel(bar.unit, fontsize=8, labelpad=1)
