"""What is known of reflection in a run: ``RUN/reflection.json``, ``RUN/reflection.parquet``, and a table to read.

The shape of ``reflection.json``::

    {
      "version": 1,
      "run": "runs/base-grpo/seed0",            # as it was typed
      "command": "visual-r1 probe runs/...",    # makes this again
      "commit": "1e446ee...", "is_dirty": false,
      "seed": 0, "level": 0.95, "wall_seconds": 71.3,
      "keywords": "default",                    # the list that decides what is cut
      "settings": {"num_examples": 200, "num_generations": 4, "temperature": 1.0, ...},
      "models": [{"name": "before", "path": "models/seed0/nano-base", "step": 0}, {"name": "after", ...}],
      "sections": [
        {
          "name": "cut",                        # one of `SECTIONS`
          "title": "Is the answer better for the reflection?",
          "note": "what it says and does not say, one or two sentences",
          "rows": [
            {
              "measure": "accuracy",            # what is estimated, see `Measurement.measure`
              "condition": "cut before the first reflection",
              "against": null,                  # what was subtracted; then `measure` is a difference. "the same at
                                                # step 0": on the items that both policies have
              "model": "before",                # "before", "after", a path, "step 20", or "all steps"
              "source": "probe",                # "probe": sampled anew; "saved train", "saved probe": the run's own
              "keywords": "default",
              "step": 0,                        # optimizer steps before it was sampled; null: several
              "unit": "share",                  # "share", "difference", "per_1k_tokens", "tokens"
              "estimate": 0.52, "interval": [0.44, 0.60],    # null: too few to say, or all agree
              "n": 131, "n_counts": "items",    # "items", "prompts" or "rollouts"
              "p": null,                        # exact McNemar, two-sided, where two conditions met the same items
              "baseline": 0.51, "baseline_interval": [0.4, 0.6]   # the same row at step 0; null: none, or itself
            }
          ]
        }
      ],
      "left_out": ["saved rollouts: runs/x has no completions/"]     # what and why, a line each
    }

``reflection.parquet`` holds an item and a condition a row: see `visual_r1.interventions.Trial`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from visual_r1.statistics import Interval

SECTIONS = {
    "rates": (
        "How often does it reflect?",
        "Counts words. A word proves no thought, and a longer text holds more of any word.",
    ),
    "within_prompt": (
        "Of the same question's completions, are those that reflect more often right?",
        "Easy questions and hard ones are not mixed, but it stays a correlation: what makes a completion reflect may "
        "also make it right. Only prompts with both kinds count, each weighted by n1 n0 / (n1 + n0).",
    ),
    "flips": (
        "Does the answer change after the first reflection?",
        "The answer that the text states before its first reflection, by a rule of form, against the final one. A text "
        "that states none in one of these forms is counted as such, not guessed.",
    ),
    "cut": (
        "Is the answer better for the reflection?",
        "The thought cut before its first reflection and answered at once, against the whole thought, both answered "
        "greedily. What is cut off is all that follows, not the words of doubt alone.",
    ),
    "forced": (
        "Does a reflection that is put in help?",
        "At the end of a thought that did not reflect: words of doubt and then whatever the model makes of them, or "
        "words of doubt that confirm and end, against the thought as it was; all answered greedily.",
    ),
    "early": (
        "When is the answer decided?",
        "The answer forced after a part of the thought. Where the curve is flat, the rest of the thought does not "
        "decide; a model that was never trained on cut thoughts may also answer worse for the cut itself.",
    ),
    "image": (
        "Does it look at the image, and until when?",
        "The image blanked or exchanged from the start, or blanked after a part of the thought.",
    ),
}
"""The sections by name, in their order: title and note."""
_MIN_READABLE = 0.95


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number with all that must stand beside it."""

    section: str
    measure: str
    """``accuracy``, ``readable_rate``, ``truncated_rate``, ``num_tokens``, ``num_thought_tokens``, ``reflection_rate``,
    ``reflection_per_1k_tokens``, ``effect_within_prompt``, ``gap_over_all_prompts``, ``flip_share``,
    ``flip_accuracy_gain``."""
    condition: str
    model: str
    source: str
    estimate: float | None
    interval: tuple[float, float] | None
    n: int
    n_counts: str
    unit: str
    keywords: str | None = None
    step: int | None = None
    against: str | None = None
    p: float | None = None
    baseline: float | None = None
    baseline_interval: tuple[float, float] | None = None

    @property
    def key(self) -> tuple[str | None, ...]:
        """What a measurement and its baseline share."""
        return (self.section, self.measure, self.condition, self.against, self.source, self.keywords)


def ends(interval: Interval | None) -> tuple[float, float] | None:
    """Both ends of an interval."""
    return None if interval is None else (interval.low, interval.high)


def with_baselines(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Each with the same measurement at step 0, where there is one and it is another."""
    measured = list(measurements)
    first = {one.key: one for one in measured if one.step == 0}
    return [
        one
        if one.step == 0 or one.key not in first
        else replace(one, baseline=first[one.key].estimate, baseline_interval=first[one.key].interval)
        for one in measured
    ]


def sections(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The measurements as ``reflection.json`` has them; a section without any is left out."""
    found = []
    for name, (title, note) in SECTIONS.items():
        rows = [asdict(one) for one in measurements if one.section == name]
        for row in rows:
            del row["section"]
        if rows:
            found.append({"name": name, "title": title, "note": note, "rows": rows})
    return found


def table(record: Mapping[str, Any]) -> str:
    """The record for a terminal: the run's own keyword list, a policy a column, each cell with its interval and n.

    Of saved rollouts it shows the rates at both ends, and the rest over all steps together. How many answers could be
    read is shown where it is under 95 %, since it bounds accuracy, and how many were cut where it is over 5 %.
    """
    lines: list[str] = []
    for section in record["sections"]:
        rows = [row for row in section["rows"] if row["keywords"] in (None, record["keywords"])]
        sources = dict.fromkeys(row["source"] for row in rows)
        blocks = [_block([row for row in rows if row["source"] == source], section["name"]) for source in sources]
        if any(blocks):
            lines += [section["title"], *(line for block in blocks for line in block), ""]
    lines += [f"left out: {line}" for line in record["left_out"]]
    return "\n".join(line.rstrip() for line in lines)


def _block(rows: Sequence[Mapping[str, Any]], section: str) -> list[str]:
    """The rows of one source, a line a measure and condition."""
    if rows and rows[0]["source"] != "probe":
        steps = [row["step"] for row in rows if row["step"] is not None]
        shown = {min(steps), max(steps)} if section == "rates" else {None}
        rows = [row for row in rows if row["step"] in shown]
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["measure"] != "num_thought_tokens":
            found.setdefault(_name(row), {})[row["model"]] = row
    found = {name: cells for name, cells in found.items() if any(_says_something(row) for row in cells.values())}
    if not found:
        return []
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [[rows[0]["source"], *models]]
    lines += [[name, *(_cell(cells.get(model)) for model in models)] for name, cells in found.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _says_something(row: Mapping[str, Any]) -> bool:
    """Whether a rate of what can be read, or was cut, is not as it should be; always true of other measures."""
    if row["measure"] == "readable_rate":
        return row["estimate"] < _MIN_READABLE
    return row["measure"] != "truncated_rate" or row["estimate"] > 1 - _MIN_READABLE


def _name(row: Mapping[str, Any]) -> str:
    what = f"{row['measure'].replace('_', ' ')}: {row['condition']}"
    return what if row["against"] is None else f"{what} - {row['against']}"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["estimate"] is None:
        return "-"
    scale = 100 if row["unit"] in ("share", "difference") else 1
    number = f"{scale * row['estimate']:{'+' if row['unit'] == 'difference' else ''}.1f}"
    number += " %" if row["unit"] == "share" else ""
    interval = row["interval"]
    around = "" if interval is None else f" [{scale * interval[0]:.1f}, {scale * interval[1]:.1f}]"
    return f"{number}{around} of {row['n']} {row['n_counts']}"
