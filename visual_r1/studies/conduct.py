"""What ``visual-r1 study`` does: run what is missing, judge, write down; and the page over all studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from visual_r1.config import compose_config
from visual_r1.files import read_json, write_text
from visual_r1.run_folder import RunFolder
from visual_r1.studies import building, page, running
from visual_r1.studies.causal import causal_test
from visual_r1.studies.dose import curve_of
from visual_r1.studies.entries import OtherScaleError, StudyError
from visual_r1.studies.study import FILE, HOME, Study, load
from visual_r1.studies.verdict import judge


def conduct(
    names: Sequence[str],
    *,
    experiments: Path,
    runs: Path,
    jobs: int,
    overrides: Sequence[str],
    command: str,
    judges_alone: bool = False,
) -> int:
    """Runs and judges studies; what is finished already is not run again.

    Args:
        names: their folders; none: all but those that make models of their own, which takes hours.
        experiments: the folder that holds theirs.
        runs: where the runs lie.
        jobs: how many run at once.
        overrides: of every run, such as ``scale=paper``. The verdict then is not the organism's and goes to the runs.
        command: what was typed.
        judges_alone: runs nothing; judges the studies whose runs are finished.

    Returns:
        0, or as a sweep ends: with a signal, and then nothing is judged; or 1 after a run that failed, and then the
        studies are judged that do not need it.

    Raises:
        StudyError: a study that cannot be run or judged; the others are judged before.
    """
    scale = next((one.partition("=")[2] for one in reversed(overrides) if one.startswith("scale=")), HOME)
    studies = [load(experiments / name, scale=scale) for name in names] or _light(experiments, scale=scale)
    builds = building.builds_of(studies, runs=runs)
    wanted = running.needed(studies, runs=runs, overrides=overrides)
    folders = {(one.cell, one.seed): one.folder for one in wanted}
    behind = " ".join(running.behind_a_cell("K", overrides=overrides, scale=compose_config(overrides).scale))
    code = 0
    if not judges_alone:
        code = _do_missing(studies, builds, wanted, jobs=jobs, command=command, runs=runs)
        if code > 1:
            return code
    wrong = []
    for study in studies:
        own = {(cell, seed): folders[cell, seed] for cell in study.cells for seed in study.seeds}
        if lacking := _lacking(study, own):
            print(f"{study.name}: not judged, {lacking}: `{_command(study, overrides)}`")
            continue
        records = [
            building.build_folder(runs, name, seed) / building.RECORD for name in study.builds for seed in study.seeds
        ]
        try:
            judgement = judge(study, own, records)
            curve = None if study.dose is None else curve_of(study, study.dose, own)
            forced = causal_test(study, own)
        except StudyError as error:
            wrong.append(str(error))
            continue
        results = (runs / "verdicts" if overrides else experiments) / study.name
        results.mkdir(parents=True, exist_ok=True)
        command_of_study = _command(study, overrides)
        page.write(judgement, results, command=command_of_study, behind=behind, curve=curve, forced=forced)
        print(_summary(study, results))
    if not overrides:
        write_text(experiments / page.README, overview(experiments))
    if wrong:
        raise StudyError("; ".join(dict.fromkeys(wrong)))
    return code


def _lacking(study: Study, runs: Mapping[tuple[str, int], RunFolder]) -> str | None:
    """What a study's runs still lack before it can be judged."""
    if not all(folder.is_finished for folder in runs.values()):
        return "its runs are not finished"
    if study.probe is None:
        return None
    probed = [folder for (cell, _), folder in runs.items() if cell in study.probed]
    return None if all(building.is_probed(one, study.probe) for one in probed) else "its runs are not probed"


def _do_missing(
    studies: Sequence[Study],
    builds: Sequence[building.Build],
    wanted: Sequence[running.Needed],
    *,
    jobs: int,
    command: str,
    runs: Path,
) -> int:
    """Builds, runs and probes what is not there yet; returns 0, or as a sweep ends that failed or was stopped.

    Builds take hours, so one seed is done after the other: whenever it is stopped, most seeds are whole or not begun.
    """
    seeds = sorted({one.seed for one in wanted})
    needed = {folder for build in builds for folder in build.needs}
    # First what several builds wait for, of all seeds: it would keep a core waiting in each seed's turn.
    if unbuilt := [build for build in builds if build.folder in needed and not build.is_finished]:
        if code := building.make(unbuilt, jobs=jobs, command=command, runs=runs):
            return code
    for turn in [{seed} for seed in seeds] if builds else [set(seeds)]:
        if unbuilt := [build for build in builds if build.seed in turn and not build.is_finished]:
            if code := building.make(unbuilt, jobs=jobs, command=command, runs=runs):
                return code
        if missing := [one for one in wanted if one.seed in turn and not one.folder.is_finished]:
            if code := running.run(missing, jobs=jobs, command=command, runs=runs):
                return code
        for study in studies:
            if study.probe is None:
                continue
            probed = [one for one in wanted if one.cell in study.probed and one.seed in turn.intersection(study.seeds)]
            if unprobed := [one.folder for one in probed if not building.is_probed(one.folder, study.probe)]:
                if code := building.probe(unprobed, study.probe, jobs=jobs, command=command, runs=runs):
                    return code
    return 0


def overview(experiments: Path) -> str:
    """The page over all studies: one row a claim."""
    rows, minutes = [], 0.0
    for name in _all(experiments):
        study, results = load(experiments / name), experiments / name / page.RESULTS
        if not results.exists():
            rows.append(f"| [{study.claim}]({name}) | {study.paper} | not run yet | | | `make study NAME={name}` | |")
            continue
        found = read_json(results)
        shown = "<br>".join(
            f"{one['says']} ({page.bounds_of(one)}): {page.shown_record(one)}" for one in found["conditions"]
        )
        minutes += found["minutes"]
        rows.append(
            f"| [{study.claim}]({name}) | {study.paper} | {shown} | {len(found['seeds'])} | **{found['verdict']}** | "
            f"`{found['command']}` | {found['minutes']:.0f} |"
        )
    return "\n".join(
        (
            "# The claims",
            "",
            "Each is a `study.yaml`: the runs that it needs and what must be true of them. The verdict follows from "
            "the intervals and is written by the same command that makes the runs. What they say is said of the "
            "organism that ships with this repository; each page says what they cannot say. In brackets behind a "
            "condition: where the claim puts the number.",
            "",
            "| claim | what the paper says | what the organism shows, with 95 % intervals | seeds | verdict | command "
            "| minutes of runs |",
            "| --- | --- | --- | ---: | --- | --- | ---: |",
            *rows,
            "",
            "Studies share runs, so that all of them together (`make studies`) take less than their minutes added up. "
            "What was tried and failed stands in [LOG.md](LOG.md). This page is generated.",
            "",
        )
    )


def _all(experiments: Path) -> list[str]:
    names = sorted(file.parent.name for file in experiments.glob(f"*/{FILE}"))
    if not names:
        raise StudyError(f"{experiments}: no folder in it has a {FILE}")
    return names


def _light(experiments: Path, *, scale: str) -> list[Study]:
    """All studies but those that make models of their own and those that are not for this scale, which are named."""
    studies = []
    for name in _all(experiments):
        if load(experiments / name).builds:
            continue
        try:
            studies.append(load(experiments / name, scale=scale))
        except OtherScaleError as error:
            print(f"left out: {error}")
    return studies


def _command(study: Study, overrides: Sequence[str]) -> str:
    return " ".join(("visual-r1 study", study.name, *overrides)) if overrides else f"make study NAME={study.name}"


def _summary(study: Study, results: Path) -> str:
    found = read_json(results / page.RESULTS)
    lines = [f"{study.name}: {found['verdict']}"]
    lines += [f"  {one['verdict']}: {one['says']}: {page.shown_record(one)}" for one in found["conditions"]]
    return "\n".join([*lines, f"  {results / page.README}"])
