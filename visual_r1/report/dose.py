"""A study's curve as a picture: what was before training, what is after it, against a dose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from visual_r1.files import replacing

_AFTER, _BEFORE, _GREY = "#0072B2", "#E69F00", "#6E6E6E"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One cell of the curve, or one beside it."""

    label: str
    before: tuple[float, ...]
    """Of each seed."""
    after: tuple[float, ...]
    estimate: float
    low: float
    """-inf where there is no interval."""
    high: float
    is_on_curve: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What became of thoughts that were cut or added to, in one cell before training or after it."""

    cell: str
    is_before: bool
    bars: tuple[tuple[str, tuple[float, ...]], ...]
    """What was answered after, and how often that was right, in [0, 1], of each seed."""


def dose_figure(
    marks: Sequence[Mark],
    panels: Sequence[Panel],
    path: Path,
    *,
    label: str,
    measure: str,
    falls_to: float,
    at: tuple[float, float, float] | None,
) -> None:
    """Draws the curve with its band, its seeds, and the dose at which it has fallen to a value, as SVG.

    Under it what a reflection is worth, where that was asked: one panel a cell and moment.

    The doses stand at equal distances, for they mostly double and begin with none.

    Args:
        marks: by dose, those beside the curve last.
        panels: of the same conditions; none draws the curve alone.
        path: the file.
        label: of the dose.
        measure: what was measured.
        falls_to: the value.
        at: where it is reached and the ends of its interval, in marks from the first; None draws none.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _GREY,
        "svg.hashsalt": "visual_r1",  # the same numbers give the same file
        "svg.fonttype": "none",
    }
    on_curve = [number for number, mark in enumerate(marks) if mark.is_on_curve]
    gap = 0.6  # between the curve and what stands beside it
    where = [number if mark.is_on_curve else number + gap for number, mark in enumerate(marks)]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.8, 3.8 + (2.4 if panels else 0.0)), layout="constrained")
        FigureCanvasSVG(figure)
        parts = figure.subfigures(2, 1, height_ratios=(3.8, 2.4), squeeze=False)[:, 0] if panels else [figure]
        axes = parts[0].subplots()
        axes.axhline(falls_to, color=_GREY, lw=0.7, ls=":")
        curve = [marks[number].estimate for number in on_curve]
        bands = [(marks[number].low, marks[number].high) for number in on_curve]
        if all(math.isfinite(low) for low, _ in bands):
            axes.fill_between(
                on_curve,
                [max(0.0, low) for low, _ in bands],
                [min(1.0, high) for _, high in bands],
                color=_AFTER,
                alpha=0.15,
                lw=0,
            )
        axes.plot(on_curve, curve, color=_AFTER, lw=2, label="after training, monotone fit")
        for place, mark in zip(where, marks, strict=True):
            axes.plot([place] * len(mark.after), mark.after, "o", color=_AFTER, ms=5, alpha=0.8, mew=0)
            axes.plot([place] * len(mark.before), mark.before, "_", color=_BEFORE, ms=11, mew=2)
        axes.plot([], [], "o", color=_AFTER, ms=5, label="after training, each seed")
        axes.plot([], [], "_", color=_BEFORE, ms=11, mew=2, label="before training, each seed")
        if at is not None:
            estimate, low, high = at
            axes.plot([low, high], [falls_to, falls_to], color="black", lw=2)
            axes.plot([estimate], [falls_to], "D", color="black", ms=5)
        axes.set_xticks(where, [mark.label for mark in marks])
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(label)
        axes.set_ylabel(measure)
        # Above it: within, it would lie over a seed beside the curve.
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        if panels:
            _draw_panels(parts[1], panels)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _draw_panels(figure: Any, panels: Sequence[Panel]) -> None:
    rows = [name for name, _ in panels[0].bars]
    for axes, panel in zip(
        figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0], panels, strict=True
    ):
        color = _BEFORE if panel.is_before else _AFTER
        for row, (_, values) in enumerate(panel.bars):
            if values:
                axes.barh(row, fmean(values), height=0.62, color=color, alpha=0.3, lw=0)
            axes.plot(values, [row] * len(values), "o", color=color, ms=4, alpha=0.8, mew=0)
        axes.set_title(f"{panel.cell}\n{'before' if panel.is_before else 'after'} training", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.tick_params(axis="x", labelsize=7)
    figure.supxlabel("right, of the answers that were forced", fontsize=8)
