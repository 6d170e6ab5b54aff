"""The records of a study's runs in one file: to judge them without making them, or to go on on another machine.

Everything that a verdict is made of is in it. Weights, checkpoints and the texts of training stay behind.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from visual_r1.files import read_json, replacing
from visual_r1.run_folder import RunFolder
from visual_r1.studies import building
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import Study

ARCHIVE = "runs.tar.xz"
"""Beside the study's file."""


def pack(study: Study, *, runs: Path, archive: Path) -> int:
    """Writes the records of a study's finished runs; the same records make the same bytes.

    A run that is to be probed and is not yet stays behind. So does the record of a build that a run still needs:
    without its weights that run could not be made.

    Returns:
        How many runs it holds.

    Raises:
        StudyError: no run is finished, or a record cannot be read.
    """
    packed = [(cell, seed) for cell in study.cells for seed in study.seeds if _is_done(study, runs, cell, seed)]
    if not packed:
        raise StudyError(f"{runs}: holds no finished run of {study.name}, there is nothing to pack")
    files = [file for cell, seed in packed for file in _records(RunFolder(runs / cell / f"seed{seed}"))]
    for seed in study.seeds:
        done = {cell for cell, of in packed if of == seed}
        for name in study.builds:
            record = building.build_folder(runs, name, seed) / building.RECORD
            if record.is_file() and not _is_needed(study, name, done):
                files.append(record)
    with replacing(archive) as scratch, tarfile.open(scratch, "w:xz", preset=9) as tar:
        for file in sorted(files):
            content = _content(file)
            member = tarfile.TarInfo(file.relative_to(runs).as_posix())  # as made in 1970 by nobody
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(packed)


def unpack(archive: Path, *, runs: Path) -> list[Path]:
    """Puts records where the runs would lie; what lies there already stays as it is.

    Returns:
        The folders that were not there before.

    Raises:
        StudyError: there is no such file, or it is damaged.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix=".unpacking-") as scratch:
        try:
            with tarfile.open(archive, "r:xz") as tar:
                tar.extractall(scratch, filter="data")
        except FileNotFoundError:
            raise StudyError(f"{archive}: there is no such file; `visual-r1 study NAME --pack` writes one") from None
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
            raise StudyError(f"{archive}: cannot be unpacked: {' '.join(str(error).split())}") from error
        new = []
        for folder in sorted({file.parent for file in Path(scratch).rglob("*") if file.is_file()}):
            place = runs / folder.relative_to(scratch)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(place)
                new.append(place)
    return new


def _is_done(study: Study, runs: Path, cell: str, seed: int) -> bool:
    folder = RunFolder(runs / cell / f"seed{seed}")
    if not folder.is_finished:
        return False
    return study.probe is None or cell not in study.probed or building.is_probed(folder, study.probe)


def _is_needed(study: Study, build: str, done: Collection[str]) -> bool:
    """Whether a run that is not done comes from this build, of the same seed."""

    def is_used(typed: tuple[str, ...]) -> bool:
        return any(f"{{{build}}}" in one for one in typed)

    cells = any(is_used(typed) for cell, typed in study.cells.items() if cell not in done)
    return cells or any(_is_needed(study, other, done) for other, typed in study.builds.items() if is_used(typed))


def _records(folder: RunFolder) -> Iterator[Path]:
    needed = (folder.config, folder.provenance, folder.metrics, folder.evaluation, folder.evaluation_items)
    probed = (folder.reflection, folder.reflection_trials)
    yield from (*needed, folder.summary)
    yield from (file for file in probed if file.is_file())


def _content(file: Path) -> bytes:
    try:
        if file.name == RunFolder(file.parent).provenance.name:
            return (json.dumps(_without_place(read_json(file)), indent=2) + "\n").encode()
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise StudyError(f"{file}: {' '.join(str(error).split())}") from error


def _without_place(record: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance that does not say where run.py lay on the machine that ran it."""
    found = dict(record)
    if typed := found.get("command"):
        found["command"] = [PurePath(typed[0]).name, *typed[1:]]
    if "resumes" in found:
        found["resumes"] = [_without_place(one) for one in found["resumes"]]
    return found
