"""What a study makes before its runs, and what it asks of them after: commands that are run once each, and resumed.

A build lies at ``RUNS/builds/<name>/seed<k>``, with the record of the command, the seed and the code that made it. It
is made under another name and renamed when it is whole, so one that was stopped is begun anew.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from visual_r1 import provenance
from visual_r1.files import read_json, write_json
from visual_r1.run_folder import RunFolder
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import Study
from visual_r1.sweeps.ledger import Record, State, SweepFolder, exit_code, table
from visual_r1.sweeps.processes import Ended, supervise

RECORD = "build.json"
_ROOT = Path(__file__).resolve().parents[2]
_OURS = (sys.executable, "-m", "visual_r1.cli")


@dataclass(frozen=True, kw_only=True)
class Build:
    """Something that a study makes for a seed."""

    name: str
    seed: int
    typed: tuple[str, ...]
    """Behind visual-r1, with {folder} left open and the folders of other builds in it."""
    folder: Path
    needs: tuple[Path, ...]
    """The folders of the builds that it uses."""

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / RECORD).is_file()


def build_folder(runs: Path, name: str, seed: int) -> Path:
    """Where a build of a study lies."""
    return runs / "builds" / name / f"seed{seed}"


def builds_of(studies: Iterable[Study], *, runs: Path) -> list[Build]:
    """The builds of studies, each once, one after those that it needs.

    Raises:
        StudyError: two studies have different builds of one name, or another command has made what lies there.
    """
    found: dict[tuple[str, int], Build] = {}
    for study in studies:
        for seed in study.seeds:
            for name, typed in study.builds.items():
                folders = {other: build_folder(runs, other, seed) for other in study.builds}
                used = [other for other in folders if any(f"{{{other}}}" in one for one in typed)]
                values = {**{other: str(folders[other]) for other in used}, "seed": str(seed)}
                build = Build(
                    name=name,
                    seed=seed,
                    typed=tuple(filled(one, values) for one in typed),
                    folder=folders[name],
                    needs=tuple(folders[other] for other in used),
                )
                if found.setdefault((name, seed), build) != build:
                    raise StudyError(
                        f"{study.name}: builds.{name} is another one in an earlier study: rename one of them"
                    )
    for build in found.values():
        if build.is_finished and (made_by := read_json(build.folder / RECORD)["command"]) != _command(build.typed):
            raise StudyError(f"{build.folder}: was made by `{made_by}`, not by what the study says now: move it away")
    depths: dict[Path, int] = {}
    for build in found.values():
        depths[build.folder] = 1 + max((depths[one] for one in build.needs), default=0)
    # What others wait for comes first, of all seeds: a build that waits keeps a core from those that could go on.
    return sorted(found.values(), key=lambda build: depths[build.folder])


def make(missing: Sequence[Build], *, jobs: int, command: str, runs: Path) -> int:
    """Makes builds, as many at once as ``jobs``; what is missing waits for those that it needs.

    Returns:
        0, or as a sweep ends with that failed or was stopped.
    """
    return _all_of(
        [(str(build.folder), build.needs, _maker(build)) for build in missing], jobs=jobs, command=command, runs=runs
    )


def probe(folders: Sequence[RunFolder], typed: Sequence[str], *, jobs: int, command: str, runs: Path) -> int:
    """Asks ``visual-r1 probe`` of finished runs; one that was stopped goes on where it was.

    Returns:
        0, or as a sweep ends with that failed or was stopped.
    """

    def asking(folder: RunFolder) -> Callable[[_Start], Ended]:
        return lambda start: start((*_OURS, "probe", str(folder.path), *typed))

    asked = [(str(folder.reflection), (), asking(folder)) for folder in folders]
    return _all_of(asked, jobs=jobs, command=command, runs=runs)


def is_probed(folder: RunFolder, typed: Sequence[str]) -> bool:
    """Whether ``visual-r1 probe`` was asked this of a run."""
    if not folder.reflection.exists():
        return False
    return shlex.split(read_json(folder.reflection)["command"])[3:] == list(typed)


_Start = Callable[[Sequence[str]], Ended]


def _maker(build: Build) -> Callable[[_Start], Ended]:
    def made(start: _Start) -> Ended:
        scratch = build.folder.with_name(f".{build.folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        started = time.perf_counter()
        ended = start((*_OURS, *(filled(one, {"folder": str(scratch)}) for one in build.typed)))
        if ended.code == 0:
            record = {
                "command": _command(build.typed),
                "seed": build.seed,
                "wall_seconds": round(time.perf_counter() - started, 1),
                **provenance.version(_ROOT),
            }
            write_json(scratch / RECORD, record)
            os.rename(scratch, build.folder)
        return ended

    return made


def _all_of(
    tasks: Sequence[tuple[str, Sequence[Path], Callable[[_Start], Ended]]], *, jobs: int, command: str, runs: Path
) -> int:
    """Does tasks of a name, what each needs and how it is done, in an order in which each stands after its needs."""
    began = time.perf_counter()
    sweep = SweepFolder((runs / ".sweeps" / datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S_%f")).resolve())
    sweep.begin(command, [name for name, _, _ in tasks])
    num_at_once = max(1, min(jobs, len(tasks)))
    futures: dict[str, Future[bool]] = {}

    def do(number: int, name: str, needs: Sequence[Path], task: Callable[[_Start], Ended]) -> bool:
        # What is needed was handed to the pool before, so that it runs or is done: nobody waits for ever.
        if not all(futures[str(one)].result() for one in needs if str(one) in futures):
            sweep.write(Record(number=number, run=name, state="failed", reason="what it needs has failed"))
            return False
        if sweep.stop_signal() is not None:
            return False
        log = sweep.log(number, machine=0)

        def start(typed: Sequence[str]) -> Ended:
            return supervise(
                typed,
                folder=Path.cwd(),
                environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": _path()},
                inherited=(),
                log=log,
                prefix="",
                stop_signal=sweep.stop_signal,
                is_worker=False,
            )

        sweep.write(Record(number=number, run=name, state="running", log=str(log)))
        print(f"job {number}: {name}", flush=True)
        started = time.perf_counter()
        ended = task(start)
        state: State = "finished" if ended.code == 0 else "failed" if sweep.stop_signal() is None else "stopped"
        reason = f"exit code {ended.code}" if state == "failed" else None
        seconds = round(time.perf_counter() - started, 1)
        sweep.write(Record(number=number, run=name, state=state, reason=reason, seconds=seconds, log=str(log)))
        print(f"job {number}: {state}: {name}", flush=True)
        return ended.code == 0

    with sweep.stoppable(), ThreadPoolExecutor(num_at_once) as pool:
        for number, (name, needs, task) in enumerate(tasks):
            futures[name] = pool.submit(do, number, name, needs, task)
        for future in futures.values():
            future.result()
    print(f"\n{table(sweep, seconds=time.perf_counter() - began)}", flush=True)
    return exit_code(sweep)


def _path() -> str:
    """Puts the code that runs now before any other that is installed, as run.py does."""
    return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))


def _command(typed: Sequence[str]) -> str:
    return " ".join(("visual-r1", *typed))


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with each ``{name}`` of the values replaced by its value."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text
