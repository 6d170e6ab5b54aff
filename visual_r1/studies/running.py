"""The runs of studies: those that are missing, as many at once as the machine holds, each as if typed alone.

Two studies that need the same run share it: it lies at ``RUNS/<cell>/seed<k>``, and a cell of that name must be the
same everywhere. What was stopped goes on when it is typed again.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visual_r1.config import ConfigError, compose_config, resolve_unchecked, run_folder
from visual_r1.run_folder import RunFinishedError, RunFolder
from visual_r1.studies.building import build_folder, filled
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import Study
from visual_r1.sweeps.devices import visible
from visual_r1.sweeps.job import Job, run_job
from visual_r1.sweeps.ledger import SweepFolder, exit_code, table

_RUN = Path(__file__).resolve().parents[2] / "run.py"


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A run that a study asks for."""

    cell: str
    seed: int
    typed: tuple[str, ...]
    """Behind run.py."""
    cfg: Any
    """The composed config."""

    @property
    def folder(self) -> RunFolder:
        """Where it lies."""
        return run_folder(self.cfg)


def needed(studies: Iterable[Study], *, runs: Path, overrides: Sequence[str] = ()) -> list[Needed]:
    """The runs of studies, each once, composed and checked before any of them starts.

    Args:
        studies: those to be judged.
        runs: where the runs lie.
        overrides: of every run, such as ``scale=paper``.

    Raises:
        StudyError: two studies have different cells of one name, or a cell does not compose.
        RunFolderError: another run lies where one should.
    """
    found: dict[tuple[str, int], Needed] = {}
    cells: dict[str, tuple[str, tuple[str, ...]]] = {}
    scale = compose_config(overrides).scale
    for study in studies:
        for cell, own in study.cells.items():
            other, same = cells.setdefault(cell, (study.name, own))
            if same != own:
                raise StudyError(
                    f"{study.name}: cells.{cell} is {shlex.join(own)!r}, and {shlex.join(same)!r} in {other}: give one "
                    "of them another name"
                )
            for seed in study.seeds:
                built = {name: str(build_folder(runs, name, seed)) for name in study.builds}
                typed = (*(filled(one, built) for one in own), *behind_a_cell(seed, overrides=overrides, scale=scale))
                typed = (*typed, f"name={cell}", f"runs_dir={runs}")
                try:
                    found[cell, seed] = Needed(cell=cell, seed=seed, typed=typed, cfg=compose_config(typed))
                except ConfigError as error:
                    raise StudyError(f"{study.name}: cells.{cell}: {error}") from error
    for one in found.values():
        try:
            one.folder.check(resolve_unchecked(one.cfg))
        except RunFinishedError:
            continue
    return list(found.values())


def run(missing: Sequence[Needed], *, jobs: int, command: str, runs: Path) -> int:
    """Runs what is missing.

    Args:
        missing: from `needed`; finished ones are skipped.
        jobs: how many at once on a machine without GPUs; where there are some, each waits for those that it needs.
        command: what was typed.
        runs: where the runs lie.

    Returns:
        0, or as a sweep ends with that failed or was stopped.
    """
    started = time.perf_counter()
    sweep = SweepFolder((runs / ".sweeps" / datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S_%f")).resolve())
    sweep.begin(command, [str(one.folder.path) for one in missing])
    num_at_once = max(1, min(jobs, len(missing)))

    def start(number: int, one: Needed) -> None:
        run_job(
            Job(
                number=number,
                command=(sys.executable, str(_RUN), *one.typed),
                folder=one.folder,
                config=resolve_unchecked(one.cfg),
                sweep=sweep,
                directory=Path.cwd(),
                num_gpus=min(one.cfg.distributed.num_processes, len(visible())),
                num_at_once=num_at_once,
            )
        )

    with sweep.stoppable(), ThreadPoolExecutor(num_at_once) as pool:
        for done in [pool.submit(start, number, one) for number, one in enumerate(missing)]:
            done.result()
    print(f"\n{table(sweep, seconds=time.perf_counter() - started)}", flush=True)
    return exit_code(sweep)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def behind_a_cell(seed: int | str, *, overrides: Sequence[str], scale: Any) -> tuple[str, ...]:
    """What a study types behind a cell: the overrides, and what the scale leaves open.

    One thread where a run says how many: two runs beside each other do more than one with two threads. It is the same
    however many run at once, for sums in another order are other numbers. And where the scale has several builds of its
    organisms, each seed starts from its own, so that an interval over seeds covers how the organism came out, too.

    Args:
        seed: or the letter that stands for it on a page.
        overrides: of every run.
        scale: their config's.
    """
    threads = () if scale.num_threads is None else ("scale.num_threads=1",)
    build = () if scale.organism_seed is None else (f"scale.organism_seed={seed}",)
    return (*overrides, *threads, *build, f"seed={seed}")
