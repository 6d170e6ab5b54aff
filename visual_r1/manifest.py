"""What makes a folder of large files whole: a list of them, written last and compared before one of them is read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.files import read_json, sync_folder, write_json

MANIFEST = "manifest.json"
"""The list's name, in the folder that it describes."""

_BLOCK_BYTES = 4 << 20


def list_files(folder: Path) -> list[str]:
    """The files below a folder, as paths relative to it, in order; the manifest is none of them."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST)


def describe(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and CRC-32 of files, which are on the disk, and not only in its cache, when this returns.

    The check is against a torn or rotten file, not against a forged one, so speed decides: zlib's CRC-32 reads several
    gigabytes a second, more than most disks give.
    """
    described = {}
    for name in names:
        path = folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        described[name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
    return described


def seal(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the manifest, last: from here on the folder is whole, whatever happens to the machine."""
    for inner in {(folder / name).parent for name in files}:
        sync_folder(inner)
    write_json(folder / MANIFEST, {"files": dict(sorted(files.items()))})
    sync_folder(folder)
    sync_folder(folder.parent)


def is_sealed(folder: Path) -> bool:
    """Whether the folder says that it was written to its end; what became of it since, only `damage` says."""
    return (folder / MANIFEST).is_file()


def damage(folder: Path) -> str | None:
    """The first thing that is not as the manifest says; None for a whole folder.

    Sizes are compared before contents, so that a short file is found at once.

    Raises:
        OSError: the disk does not give what it holds, which says nothing about the folder.
    """
    try:
        files = read_json(folder / MANIFEST)["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: the writing was cut short"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{name} has {size} of {expected['bytes']} bytes"
    for name, expected in files.items():
        if _crc32(folder / name) != expected["crc32"]:
            return f"{name} is not as it was written"
    return None


def _crc32(path: Path) -> str:
    crc, block = 0, memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc = zlib.crc32(block[:count], crc)
    return f"{crc:08x}"
