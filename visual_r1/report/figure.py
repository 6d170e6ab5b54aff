"""The aha-moment figure: accuracy, response length and reflection of one run against its optimizer steps.

The three belong together. A longer completion holds more of any phrase by chance, so a rising reflection rate means
something only beside the length, and neither is worth anything without the accuracy. An answer that cannot be read is
wrong, so accuracy may start far below guessing: the share of answers that can be read stands in the same panel.

A row of the metrics at step k holds the training rollouts that step k learned from, and the probe after step k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visual_r1.files import read_json, replacing
from visual_r1.run_folder import RunFolder
from visual_r1.statistics import wilson

# Okabe and Ito's palette: told apart with every kind of colour vision. In grey print the marks tell them apart.
_PROBE_COLOUR = "#0072B2"
_TRAINING_COLOUR = "#D55E00"
_GREY = "#6E6E6E"
_READABLE = "probe/format/parse_rate"


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    unit: str
    probe: str
    """Key of the curve measured on the probe."""
    training: str | None
    """Key of the same quantity on training rollouts; None draws the probe alone."""
    is_share: bool
    """A share of completions, in [0, 1]: drawn in per cent, with an interval."""


_PANELS = (
    _Panel(title="Accuracy", unit="right answers (%)", probe="probe/accuracy", training=None, is_share=True),
    _Panel(
        title="Response length",
        unit="tokens per completion",
        probe="probe/completions/mean_length",
        training="completions/mean_length",
        is_share=False,
    ),
    _Panel(
        title="Reflection",
        unit="completions with a\nreflecting phrase (%)",
        probe="probe/reflection/any_rate",
        training="reflection/any_rate",
        is_share=True,
    ),
)


def figure_of_run(folder: RunFolder) -> Path | None:
    """Draws the figure of a run into its folder, as PNG and SVG; None when the run has measured no curve yet."""
    rows = folder.read_metrics()
    evaluation = read_json(folder.evaluation) if folder.evaluation.exists() else {}
    drawn = aha_moment_figure(
        rows,
        folder.figure,
        title=" ".join(folder.path.resolve().parts[-2:]).replace("seed", "seed "),
        num_probe_items=_num_probe_items(folder),
        chance=evaluation.get("chance"),
    )
    return folder.figure if drawn else None


def aha_moment_figure(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str = "",
    num_probe_items: int | None = None,
    chance: float | None = None,
) -> bool:
    """Draws accuracy, response length and reflection rate, one below the other over a shared axis of steps.

    Args:
        rows: Rows of ``metrics.jsonl``.
        path: The PNG; an SVG of the same name is written beside it.
        title: Stands above the figure.
        num_probe_items: Items behind each share of the probe: the number that its 95 % Wilson interval is drawn for.
            None draws none.
        chance: Accuracy of guessing, drawn as a line.

    Returns:
        Whether there was any curve; without one nothing is written. A panel without a curve is left out, and a note
        says so.
    """
    panels = [panel for panel in _PANELS if any(_curve(rows, key)[0] for key in (panel.probe, panel.training))]
    if not panels:
        return False
    missing = [panel.title.lower() for panel in _PANELS if panel not in panels]

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _GREY,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.hashsalt": "visual_r1",  # the same numbers give the same file
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 0.9 + 1.75 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, axis in zip(panels, axes, strict=True):
            _draw(axis, panel, rows, num_probe_items=num_probe_items, chance=chance)
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        marks = {label: mark for axis in axes for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        # The title is the legend's: a suptitle would be drawn over an outside legend.
        figure.legend(
            marks.values(),
            marks.keys(),
            loc="outside upper center",
            ncols=min(len(marks), 3),
            handlelength=1.8,
            columnspacing=1.4,
            title=title,
            title_fontproperties={"weight": "bold", "size": 10},
        )
        if missing:
            figure.supxlabel(f"Not measured in this run: {', '.join(missing)}.", fontsize=8, color=_GREY)
        for file, metadata in ((path, {"Software": None}), (path.with_suffix(".svg"), {"Date": None})):
            with replacing(file) as temporary:
                figure.savefig(temporary, dpi=200, metadata=metadata)
    return True


def _draw(
    axis: Any, panel: _Panel, rows: Sequence[Mapping[str, Any]], *, num_probe_items: int | None, chance: float | None
) -> None:
    scale = 100 if panel.is_share else 1
    steps, values = _curve(rows, panel.training)
    if steps:
        axis.plot(steps, [scale * value for value in values], color=_TRAINING_COLOUR, lw=1, label="training rollouts")
    steps, values = _curve(rows, panel.probe)
    if steps:
        axis.plot(
            steps,
            [scale * value for value in values],
            color=_PROBE_COLOUR,
            lw=1.6,
            marker="o",
            markersize=3.5,
            clip_on=False,
            label="held-out probe",
            zorder=3,
        )
        if panel.is_share and num_probe_items:
            intervals = [wilson(round(value * num_probe_items), num_probe_items) for value in values]
            low, high = ([scale * getattr(interval, end) for interval in intervals] for end in ("low", "high"))
            if len(steps) > 1:
                axis.fill_between(steps, low, high, color=_PROBE_COLOUR, alpha=0.18, lw=0, label="95 % interval")
            else:
                axis.vlines(steps, low, high, color=_PROBE_COLOUR, lw=1, label="95 % interval")
    if panel.probe == "probe/accuracy":
        steps, values = _curve(rows, _READABLE)
        if steps:
            shares = [scale * value for value in values]
            axis.plot(steps, shares, color=_PROBE_COLOUR, lw=0.8, ls=":", clip_on=False, label="readable answers")
        if chance is not None:
            axis.axhline(scale * chance, color=_GREY, lw=1, ls=(0, (4, 3)), label="chance")
    axis.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axis.set_ylabel(panel.unit)
    _, top = axis.get_ylim()
    axis.set_ylim(0, 100 if panel.probe == "probe/accuracy" else max(top, 5 if panel.is_share else 0))
    axis.margins(x=0.02)
    first, last = axis.get_xlim()
    if last - first < 1:  # a single step; matplotlib would show fractions of it
        axis.set_xlim(round(first) - 1, round(last) + 1)


def _curve(rows: Sequence[Mapping[str, Any]], key: str | None) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that measured a curve."""
    points = [(row["step"], row[key]) for row in rows if key is not None and row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _num_probe_items(folder: RunFolder) -> int | None:
    """How many examples the probe asks, from the rollouts that it left; None when it left none."""
    import pyarrow.parquet

    for file in sorted(folder.completions.glob("step_*.parquet")):
        table = pyarrow.parquet.read_table(file, columns=["source", "example_id"]).to_pylist()
        # Examples and not rollouts: several completions of one prompt are not independent.
        if items := {row["example_id"] for row in table if row["source"] == "probe"}:
            return len(items)
    return None
