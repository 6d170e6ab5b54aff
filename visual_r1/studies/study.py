"""What a ``study.yaml`` says: a claim, the runs that bear on it, and the conditions under which it holds.

::

    claim: GRPO on the base lifts accuracy far above the base.
    paper:
      says: CV-Bench rises from about 31 % to 59.47 %, one seed
      source: arXiv 2503.05132, Table 2
    cannot_say: What a model of two billion parameters does.
    seeds: [0, 1, 2]
    cells:                                   # a name and what is typed behind run.py; each is run with every seed
      base-grpo: model=base method=grpo
      longer: {laptop: model=base method=sft scale.sft_steps=160, paper: ...}   # where it differs by scale
    chosen:                                  # a name for the best of some cells, never by the benchmark
      tuned: {of: [slow, fast], by: probe/accuracy}
    given:                                   # without these the claim cannot be decided; written like conditions
      - ...
    conditions:                              # the claim holds if all of them do
      - says: accuracy rises by more than ten points
        measure: benchmark/accuracy
        of: base-grpo                        # after training; "base-grpo before" is where it started
        minus: base-grpo before
        above: 0.10

A measure is one of `SHARES`, a share of the benchmark's items; ``benchmark/length``, tokens of its responses; the name
of any curve of ``metrics.jsonl``: its first value is "before", its last one "after"; or, where the study asks for
``visual-r1 probe``, ``probed/SECTION/MEASURE/CONDITION`` as ``reflection.json`` names them. A condition may also say
``minus_measure``, where what is subtracted is another measure; ``over: 10``, the mean of the first or last ten values
of a curve instead of one; and ``at_equal_rollouts: true``, where two sides are read after equally many rollouts.

A study of models that it makes itself has two more entries, and one for its curve (`visual_r1.studies.dose`)::

    builds:                                  # what is typed behind visual-r1; {folder} is its own, {seed} the seed,
      trunk: organism trunk {folder} --seed {seed}                    # {trunk} the folder of that build, same seed
      plain: organism build {folder} --seed {seed} --trunk {trunk}/nano-trunk --base-only
    cells:
      plain: model={plain}/nano-base
    probe: {of: [plain], asks: --examples 100}   # visual-r1 probe, of the runs of these cells
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from visual_r1.studies.entries import Entries, OtherScaleError, StudyError

When = Literal["before", "after"]

SHARES: Mapping[str, str] = {
    "benchmark/accuracy": "answers that are right",
    "benchmark/accuracy_with_guesses": "answers that are right, where one that cannot be read counts as a guess",
    "benchmark/blank_accuracy": "answers that are right where the image is grey",
    "benchmark/reflection": "responses that reflect",
    "benchmark/readable": "responses with an answer that can be read",
    "benchmark/truncated": "responses cut at the limit",
}
"""The measures that are a share of the benchmark's items, in words."""
LENGTH = "benchmark/length"
PROBED = "probed/"
FILE = "study.yaml"
HOME = "laptop"
"""The scale of the organisms."""


def is_rate(measure: str) -> bool:
    """Whether a measure is a share or a rate, in [0, 1], by the names that such measures have."""
    by_end = measure.endswith(("accuracy", "_rate", "_ratio"))
    return measure in SHARES or by_end or "_rate_" in measure or "/accuracy/" in measure


_REFERENCE = re.compile(r"\{([\w-]+)\}")
_NAME = re.compile(r"[\w-]+")
_TAKEN = ("builds", "verdicts")
"""Folders that lie beside those of the cells."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The runs of a cell, before or after training."""

    cell: str
    when: When = "after"

    def __str__(self) -> str:
        return self.cell if self.when == "after" else f"{self.cell} before"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A statement about one number, which its interval decides."""

    says: str
    measure: str
    of: Side
    minus: Side | None
    """What is subtracted; None judges the number itself."""
    minus_measure: str
    """Of what is subtracted; mostly the same measure."""
    above: float
    """-inf where there is no lower bound."""
    below: float
    """inf where there is no upper bound."""
    over: int
    """How many values of a curve are averaged."""
    at_equal_rollouts: bool
    """Whether both sides are read when they have had as many rollouts as the one with fewer."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Those that it looks at."""
        return tuple(dict.fromkeys(side.cell for side in (self.of, self.minus) if side is not None))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best of some cells by the mean over seeds of a curve's last value."""

    of: tuple[str, ...]
    by: str


@dataclass(frozen=True, kw_only=True)
class Dose:
    """A curve of a measure against how much of something each cell had."""

    measure: str
    doses: Mapping[str, float]
    """Of each cell on the curve, from none on."""
    beside: tuple[str, ...]
    """Cells that stand beside the curve: as its first, but for something else."""
    falls_to: float
    """The value for which the dose is sought."""
    label: str
    """Of the dose's axis, with its unit."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim and how it is decided."""

    name: str
    """Of its folder."""
    claim: str
    paper: str
    """What the paper says of it."""
    source: str
    """Where."""
    cannot_say: str
    """What the verdict says nothing about."""
    seeds: tuple[int, ...]
    cells: Mapping[str, tuple[str, ...]]
    """What is typed behind run.py for each."""
    chosen: Mapping[str, Choice]
    given: tuple[Condition, ...]
    """Without these the claim is not decided."""
    conditions: tuple[Condition, ...]
    builds: Mapping[str, tuple[str, ...]]
    """What is typed behind visual-r1 for each, a build after those that it needs."""
    probe: tuple[str, ...] | None
    """What is typed behind ``visual-r1 probe RUN``; None does not probe."""
    probed: tuple[str, ...]
    """The cells whose runs are probed."""
    dose: Dose | None


def load(path: Path, *, scale: str = HOME) -> Study:
    """Reads a study.

    Args:
        path: its folder, or its file.
        scale: that it is to run at.

    Raises:
        StudyError: there is none, an entry is missing, unknown or of the wrong kind, or it does not run at this scale.
    """
    file = path / FILE if path.is_dir() else path
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{file}: there is no such study") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{file}: {' '.join(str(error).split())}") from error
    entries = Entries(file, "", given)
    entries.only("claim", "paper", "cannot_say", "seeds", *_PARTS)
    paper = entries.inner("paper")
    paper.only("says", "source")
    builds = _builds(entries) if "builds" in entries.given else {}
    if builds and scale != HOME:
        raise OtherScaleError(
            f"{file}: scale={scale}: its models are built, and are organisms: it runs at scale={HOME} only"
        )
    cells = _cells(entries, scale, builds)
    chosen = {
        str(name): _choice(Entries(file, f"chosen.{name}", one), cells)
        for name, one in (entries.mapping("chosen") if "chosen" in entries.given else {}).items()
    }
    if taken := sorted(set(cells) & set(chosen)):
        raise StudyError(f"{file}: chosen.{taken[0]}: a cell has this name already")
    known = {**cells, **chosen}
    probe = entries.inner("probe") if "probe" in entries.given else None
    study = Study(
        name=file.resolve().parent.name,
        claim=entries.text("claim"),
        paper=paper.text("says"),
        source=paper.text("source"),
        cannot_say=entries.text("cannot_say"),
        seeds=_seeds(entries),
        cells=cells,
        chosen=chosen,
        given=_conditions(entries, "given", known) if "given" in entries.given else (),
        conditions=_conditions(entries, "conditions", known),
        builds=builds,
        probe=tuple(shlex.split(probe.text("asks"))) if probe is not None else None,
        probed=_probed(probe, cells) if probe is not None else (),
        dose=_dose(entries.inner("dose"), cells) if "dose" in entries.given else None,
    )
    _check_used(file, study)
    return study


_PARTS = ("cells", "chosen", "given", "conditions", "builds", "probe", "dose")


def _check_used(file: Path, study: Study) -> None:
    used = {cell for condition in (*study.given, *study.conditions) for cell in condition.cells}
    used |= {cell for name, choice in study.chosen.items() if name in used for cell in choice.of}
    if study.dose is not None:
        used |= {*study.dose.doses, *study.dose.beside}
    if unused := (set(study.cells) | set(study.chosen)) - used:
        raise StudyError(f"{file}: cells {sorted(unused)}: no condition looks at them")
    for one in (*study.given, *study.conditions):
        if not any(measure.startswith(PROBED) for measure in (one.measure, one.minus_measure)):
            continue
        if study.probe is None:
            raise StudyError(f"{file}: a measure is {PROBED}..., but there is no entry probe")
        cells = {cell for name in one.cells for cell in (study.chosen[name].of if name in study.chosen else (name,))}
        if unprobed := sorted(cells - set(study.probed)):
            raise StudyError(f"{file}: a measure is {PROBED}... of {unprobed[0]}, which probe.of does not name")


def _builds(entries: Entries) -> dict[str, tuple[str, ...]]:
    builds: dict[str, tuple[str, ...]] = {}
    for name, value in entries.mapping("builds").items():
        place = f"{entries.file}: builds.{name}"
        if not isinstance(value, str) or "{folder}" not in value or "{seed}" not in value:
            raise StudyError(
                f"{place} is {value!r}, expected what is typed behind visual-r1, with {{folder}} and {{seed}}"
            )
        for reference in _REFERENCE.findall(value):
            if reference not in ("folder", "seed", *builds):
                raise StudyError(f"{place}: {{{reference}}} is unknown, expected folder, seed or a build above it")
        if str(name) in ("folder", "seed"):
            raise StudyError(f"{place}: {{{name}}} stands for something else already: give it another name")
        builds[str(name)] = tuple(shlex.split(value))
    return builds


def _cells(entries: Entries, scale: str, builds: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    cells = {}
    for name, value in entries.mapping("cells").items():
        if isinstance(value, Mapping):
            if scale not in value:
                raise OtherScaleError(
                    f"{entries.file}: cells.{name} says nothing of scale={scale}, only of {sorted(value)}"
                )
            value = value[scale]
        if not _NAME.fullmatch(str(name)) or str(name) in _TAKEN:
            raise StudyError(
                f"{entries.file}: cells.{name}: its runs lie in a folder of this name beside {' and '.join(_TAKEN)}: "
                "expected another one, of letters, digits, - and _"
            )
        cells[str(name)] = _overrides(entries.file, str(name), value)
        for reference in _REFERENCE.findall(value):
            if reference not in builds:
                raise StudyError(f"{entries.file}: cells.{name}: {{{reference}}} is no build, only {sorted(builds)}")
    return cells


def _overrides(file: Path, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, str) or any("=" not in one for one in shlex.split(value)):
        raise StudyError(f"{file}: cells.{name} is {value!r}, expected what is typed behind run.py: model=base ...")
    typed = tuple(shlex.split(value))
    if taken := [one for one in typed if one.partition("=")[0] in ("seed", "name", "runs_dir", "scale")]:
        raise StudyError(f"{file}: cells.{name}: {taken[0]}: the study itself says this")
    return typed


def _seeds(entries: Entries) -> tuple[int, ...]:
    seeds = entries.sequence("seeds")
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise StudyError(f"{entries.file}: seeds is {seeds}, expected numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise StudyError(f"{entries.file}: seeds is {seeds}: one stands there twice")
    return tuple(seeds)


def _choice(entries: Entries, cells: Mapping[str, Any]) -> Choice:
    entries.only("of", "by")
    of, by = tuple(map(str, entries.sequence("of"))), entries.text("by")
    for cell in of:
        if cell not in cells:
            raise StudyError(f"{entries.file}: {entries.at('of')}: there is no cell {cell}, only {sorted(cells)}")
    if not by.startswith("probe/"):
        raise StudyError(
            f"{entries.file}: {entries.at('by')} is {by!r}, expected a curve of the probe: what is chosen by the items "
            "that judge it is judged too well"
        )
    return Choice(of=of, by=by)


def _probed(entries: Entries, cells: Mapping[str, Any]) -> tuple[str, ...]:
    entries.only("of", "asks")
    of = tuple(map(str, entries.sequence("of")))
    for cell in of:
        if cell not in cells:
            raise StudyError(f"{entries.file}: {entries.at('of')}: there is no cell {cell}, only {sorted(cells)}")
    return of


def _dose(entries: Entries, cells: Mapping[str, Any]) -> Dose:
    entries.only("measure", "doses", "beside", "falls_to", "label")
    doses = {
        str(cell): Entries(entries.file, entries.at("doses"), entries.given["doses"]).number(cell, math.nan)
        for cell in entries.mapping("doses")
    }
    beside = tuple(map(str, entries.sequence("beside"))) if "beside" in entries.given else ()
    if unknown := [cell for cell in (*doses, *beside) if cell not in cells]:
        raise StudyError(f"{entries.file}: {entries.place}: there is no cell {unknown[0]}, only {sorted(cells)}")
    if list(doses.values()) != sorted(set(doses.values())) or len(doses) < 3:
        raise StudyError(
            f"{entries.file}: {entries.at('doses')}: expected three doses or more, each above the last one"
        )
    return Dose(
        measure=entries.text("measure"),
        doses=doses,
        beside=beside,
        falls_to=entries.number("falls_to", 0.5),
        label=entries.text("label"),
    )


def _conditions(entries: Entries, key: str, cells: Mapping[str, Any]) -> tuple[Condition, ...]:
    return tuple(
        _condition(Entries(entries.file, f"{key}[{number}]", one), cells)
        for number, one in enumerate(entries.sequence(key))
    )


def _condition(entries: Entries, cells: Mapping[str, Any]) -> Condition:
    entries.only("says", "measure", "of", "minus", "minus_measure", "above", "below", "over", "at_equal_rollouts")
    above, below = entries.number("above", -math.inf), entries.number("below", math.inf)
    if not above < below or (above, below) == (-math.inf, math.inf):
        raise StudyError(f"{entries.file}: {entries.place}: give above, below, or both, the lower one first")
    measure = _measure(entries, "measure")
    minus_measure = _measure(entries, "minus_measure") if "minus_measure" in entries.given else measure
    over, at_equal = entries.number("over", 1), entries.given.get("at_equal_rollouts", False)
    if over != int(over) or over < 1:
        raise StudyError(f"{entries.file}: {entries.at('over')} is {over:g}, expected a number of values from 1 on")
    is_curve = not measure.startswith(("benchmark/", PROBED))
    if not isinstance(at_equal, bool) or ((over > 1 or at_equal) and not is_curve):
        raise StudyError(f"{entries.file}: {entries.place}: over and at_equal_rollouts (true) are for curves")
    if (at_equal or "minus_measure" in entries.given) and "minus" not in entries.given:
        raise StudyError(f"{entries.file}: {entries.place}: at_equal_rollouts and minus_measure need minus")
    if (measure in SHARES) != (minus_measure in SHARES):
        raise StudyError(f"{entries.file}: {entries.place}: {minus_measure} cannot be subtracted from {measure}")
    return Condition(
        says=entries.text("says"),
        measure=measure,
        of=_side(entries, "of", cells),
        minus=_side(entries, "minus", cells) if "minus" in entries.given else None,
        minus_measure=minus_measure,
        above=above,
        below=below,
        over=int(over),
        at_equal_rollouts=at_equal,
    )


def _measure(entries: Entries, key: str) -> str:
    measure = entries.text(key)
    if measure.startswith("benchmark/") and measure not in (*SHARES, LENGTH):
        raise StudyError(
            f"{entries.file}: {entries.at(key)}={measure} is unknown, expected one of {[*SHARES, LENGTH]} or a "
            "curve of metrics.jsonl"
        )
    if measure.startswith(PROBED) and measure.count("/") < 3:
        raise StudyError(f"{entries.file}: {entries.at(key)}={measure}: expected {PROBED}SECTION/MEASURE/CONDITION")
    return measure


def _side(entries: Entries, key: str, cells: Mapping[str, Any]) -> Side:
    name, _, when = entries.text(key).partition(" ")
    if name not in cells:
        raise StudyError(f"{entries.file}: {entries.at(key)}={name}: there is no such cell, only {sorted(cells)}")
    if when not in ("", "before"):
        raise StudyError(f"{entries.file}: {entries.at(key)}: {when!r} is unknown, expected nothing or 'before'")
    return Side(cell=name, when="before" if when else "after")
