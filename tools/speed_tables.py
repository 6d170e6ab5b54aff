"""Writes the tables and the figure of docs/speed.md: ``python tools/speed_tables.py``.

Every number is read from ``benchmarks/results/step.json``, which ``make bench`` writes; none is typed by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "step.json"
PAGE = ROOT / "docs" / "speed.md"
FIGURE = ROOT / "docs" / "speed.svg"
SIDES = ("stock", "ours")
_BLOCK = re.compile(r"(<!-- (\w+): .*? -->\n).*?(<!-- /\w+ -->)", re.DOTALL)
_COLOURS = {"stock": "#D55E00", "ours": "#0072B2"}
"""Okabe and Ito's palette."""
_NAMES = {"stock": "stock trl", "ours": "shared prefix"}

Row = Mapping[str, Any]
Parts = Mapping[str, Mapping[str, Any]]


def record_table(parts: Parts) -> str:
    """Where and with what each part was measured."""
    lines = ["| part | commit | machine | threads | torch, transformers, trl |", "| --- | --- | --- | ---: | --- |"]
    for name, part in parts.items():
        hardware, versions = part["hardware"], part["versions"]
        commit = f"{(part['commit'] or 'unknown')[:10]}{', changed' if part['is_dirty'] else ''}"
        machine = f"{hardware['cpu']}, {hardware['num_cores']} cores"
        used = ", ".join(str(versions[one]) for one in ("torch", "transformers", "trl"))
        lines.append(_line(name, commit, machine, part["config"]["threads"], used))
    return _text(lines)


def update_table(parts: Parts) -> str:
    """Seconds of the update over the grid, stock and ours, and how many times faster."""
    return _grid(_rows(parts, "update", "update"), lambda row: f"{_pair(row)}, **{row['ratio']:.1f}x**")


def memory_table(parts: Parts) -> str:
    """GB that an update needs over the grid, stock and ours, and what share is left."""
    return _grid(_rows(parts, "memory", "peak memory of an update"), _gigabytes)


def cases_table(parts: Parts) -> str:
    """What there is to compute in some cases, what was computed, and what each stage took."""
    rows = _rows(parts, "update", "update")
    of_case = {metric: {row["case"]: row for row in _rows(parts, "update", metric)} for metric in _METRICS}
    lines = [
        "| case | prompt and completion tokens of the rollouts | tokens computed | image patches computed | "
        "update, s | pass without gradient, s | images, rewards, advantages, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        shape, tokens = row["shape"], row["tokens"]
        if not (shape["model"] == "nano" or (shape["image_tokens"], shape["group"]) == (300, 8)):
            continue
        computed = [tokens["computed"][side] for side in SIDES]
        stages = [of_case[metric].get(row["case"]) for metric in _METRICS]
        cells = [
            row["case"],
            f"{tokens['real']['prompt']:,} + {tokens['real']['completion']:,}",
            " → ".join(f"{one['tokens']:,}" for one in computed),
            " → ".join(f"{one['patches']:,}" for one in computed),
            *("" if one is None else f"{_pair(one)}, **{one['ratio']:.1f}x**" for one in stages),
        ]
        lines.append(_line(*cells))
    return _text(lines)


_METRICS = ("update", "pass without gradient", "images, rewards, advantages")


def growth_table(parts: Parts) -> str:
    """What one more completion and one more image token cost."""
    lines = ["| growing | an extra one costs stock | ours | ratio |", "| --- | ---: | ---: | ---: |"]
    for row in parts["update"]["results"]:
        if row["metric"].startswith("an extra"):
            costs = [f"{1e3 * row[side]:,.1f} ms" for side in SIDES]
            lines.append(_line(f"{row['case']}: {row['metric']}", *costs, f"{row['ratio']:.1f}x"))
    return _text(lines)


def floor_table(parts: Parts) -> str:
    """The least that the update can take on this machine, and what share of what it takes that is."""
    lines = [
        "| case | matrices, GFLOP/s | floor, s | ours, s | floor / ours | floor / stock |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in _rows(parts, "update", "update"):
        if row["shape"]["group"] == 8 and "equally" not in row["case"]:
            shares = [f"{100 * row['share_of_floor'][side]:.0f} %" for side in ("ours", "stock")]
            seconds = [_seconds(row["floor"]), _seconds(row["ours"])]
            lines.append(_line(row["case"], f"{row['gflops_per_second']:.0f}", *seconds, *shares))
    return _text(lines)


def flags_table(parts: Parts) -> str:
    """Each flag alone and all together: a batch made and learned from."""
    lines = [
        "| turned on | making the batch, s | update, s | together, s | peak memory, GB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    results = parts["flags"]["results"]
    memory = {row["case"]: row for row in _rows(parts, "memory", "peak memory of a batch, made and learned from")}
    for name in dict.fromkeys(row["case"] for row in results):
        cells = [f"{_pair(row)}, {row['ratio']:.2f}x" for row in results if row["case"] == name]
        cells.append(_gigabytes(memory[name]))
        lines.append(_line(name if name in ("none", "all") else f"`{name}`", *cells))
    return _text(lines)


def pushes_table(parts: Parts) -> str:
    """Weights for a rollout engine after a step: all of them, or those that may have changed."""
    lines = ["| | a push, s | MB |", "| --- | ---: | ---: |"]
    results = parts["pushes"]["results"]
    for row in results:
        if row["unit"] == "seconds":
            size = next(one for one in results if one["case"] == row["case"] and one["unit"] == "bytes")
            sizes = f"{size['stock'] / 1e6:.1f} → {size['ours'] / 1e6:.1f}"
            lines.append(_line(f"`{row['case']}`", f"{_pair(row)}, {row['ratio']:.2f}x", sizes))
    return _text(lines)


def steps_table(parts: Parts) -> str:
    """Whole steps as a user runs them."""
    lines = [
        "| case | completion tokens a step | a step, s | for a completion token, ms |",
        "| --- | ---: | ---: | ---: |",
    ]
    results = parts["step"]["results"]
    per_token = {row["case"]: row for row in results if row["metric"].endswith("token")}
    for row in results:
        if row["metric"] == "whole step":
            one = per_token[row["case"]]
            tokens = " / ".join(f"{row['completion_tokens'][side]:,.0f}" for side in SIDES)
            cells = [f"{_pair(each)}, **{each['ratio']:.1f}x**" for each in (row, one)]
            lines.append(_line(row["case"], tokens, *cells))
    return _text(lines)


TABLES = {
    "record": record_table,
    "update": update_table,
    "cases": cases_table,
    "memory": memory_table,
    "growth": growth_table,
    "floor": floor_table,
    "flags": flags_table,
    "pushes": pushes_table,
    "steps": steps_table,
}


PARTS_OF = {
    **dict.fromkeys(("update", "cases", "growth", "floor"), ("update",)),
    **{"memory": ("memory",), "flags": ("flags", "memory"), "pushes": ("pushes",), "steps": ("step",)},
}
"""The parts of the benchmark that a table is read from."""


def with_tables(text: str, parts: Parts) -> str:
    """The page with its tables read anew; where a part is missing, it says which."""

    def table(name: str) -> str:
        if missing := [part for part in PARTS_OF.get(name, ()) if part not in parts]:
            commands = " and ".join(f"`python -m benchmarks.step {part}`" for part in missing)
            return f"Not measured yet: {commands}.\n"
        return TABLES[name](parts)

    return _BLOCK.sub(lambda match: match[1] + table(match[2]) + match[3], text)


def digest(parts: Parts) -> str:
    """Of the results, to tell which a figure shows."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def draw(parts: Parts, path: Path) -> None:
    """Draws how the update grows, with the group and with the image, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in _rows(parts, "update", "update") if row["shape"]["model"] == "28M"]
    rows = [row for row in rows if row["shape"]["longest"] == 200 and "equally" not in row["case"]]
    group = min(row["shape"]["group"] for row in rows if row["shape"]["image_tokens"] > 500)
    panels = (
        ("completions of a prompt, 300 image tokens", "group", [row for row in rows if _image(row) == 300]),
        (f"tokens of the image, {group} completions", "image_tokens", [row for row in rows if _group(row) == group]),
    )
    # The same file for the same results: no date, no random names.
    with pyplot.rc_context({"svg.hashsalt": "speed", "font.size": 9, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        for axis, (label, key, chosen) in zip(axes, panels, strict=True):
            chosen = sorted(chosen, key=lambda row, key=key: row["shape"][key])
            sizes = [row["shape"][key] for row in chosen]
            for side, marker in zip(SIDES, ("s", "o"), strict=True):
                seconds = [row[side] for row in chosen]
                axis.plot(sizes, seconds, marker=marker, color=_COLOURS[side], label=_NAMES[side])
            axis.plot(sizes, [row["floor"] for row in chosen], ":", color="#6E6E6E", label="floor: operations alone")
            axis.set_xlabel(label)
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("seconds of an update")
        axes[0].legend(frameon=False)
        with replacing(path) as temporary:
            metadata = {"Date": None, "Description": digest(parts)}
            figure.savefig(temporary, format="svg", metadata=metadata)
        pyplot.close(figure)


def _rows(parts: Parts, part: str, metric: str) -> list[Row]:
    return [row for row in parts[part]["results"] if row["metric"] == metric]


def _image(row: Row) -> int:
    return row["shape"]["image_tokens"]


def _group(row: Row) -> int:
    return row["shape"]["group"]


def _grid(rows: Sequence[Row], cell: Any) -> str:
    """Image tokens and length of completions downwards, completions of a prompt to the right."""
    of_size = {
        (_image(row), row["shape"]["longest"], _group(row)): row
        for row in rows
        if row["shape"]["model"] == "28M" and "equally" not in row["case"]
    }
    groups, images, lengths = (4, 8, 16), (64, 300, 500), (50, 200, 700)
    lines = [
        f"| image tokens | completions up to | {' | '.join(f'G = {group}' for group in groups)} |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for image in images:
        for longest in lengths:
            cells = [of_size.get((image, longest, group)) for group in groups]
            lines.append(_line(image, longest, *("" if row is None else cell(row) for row in cells)))
    return _text(lines)


def _pair(row: Row) -> str:
    return f"{_seconds(row['stock'])} → {_seconds(row['ours'])}"


def _gigabytes(row: Row) -> str:
    return f"{row['stock'] / 1e9:.2f} → {row['ours'] / 1e9:.2f}, **{row['ratio']:.2f}**"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replaces the tables of the page, and the figure."""
    parts = json.loads(RESULTS.read_text())["parts"]
    if changed := [name for name, part in parts.items() if part["is_dirty"]]:
        print(f"measured with uncommitted code, so nobody can measure it again: {', '.join(changed)}")
    PAGE.write_text(with_tables(PAGE.read_text(), parts))
    draw(parts, FIGURE)


if __name__ == "__main__":
    main()
