"""Writes that are whole or not there: a killed run leaves no half of a file under its final name."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow


_REFUSALS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE))
_PARTIAL = ".partial-"


class WriteError(OSError):
    """The disk does not take what a run has to write: one line with the file, the reason and what is free there."""


@contextmanager
def writing(path: Path, *, fix: str = "make room and type the same command again") -> Generator[None]:
    """Turns a disk's refusal, whichever library has met it, into a `WriteError` about ``path``.

    Raises:
        WriteError: the disk is full, over its quota, read-only or broken. What was written so far is left.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise WriteError(f"cannot write {path}: {reason} ({gigabytes(free_bytes(path))} free there): {fix}") from error


def _refusal(error: Exception) -> str | None:
    """Why the disk refused; None for an error of another kind."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _REFUSALS else None
    # safetensors gives the number in words, torch says in which line it noticed that bytes were missing.
    text = str(error)
    if match := re.search(r"\(os error (\d+)\)", text):
        return os.strerror(int(match[1])) if int(match[1]) in _REFUSALS else None
    return "the disk took only a part of it" if "inline_container.cc" in text else None


def free_bytes(path: Path) -> int:
    """What is free for this user on the file system where a path lies or would lie."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def gigabytes(num_bytes: float) -> str:
    """A number of bytes for a reader, in units of 10^9 or 10^6."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def remove_partial(folder: Path) -> None:
    """Removes what killed writers have left anywhere below a folder: files that `replacing` had not finished."""
    for path in folder.rglob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Brings a folder's list of names to the disk: a file may be there and its name be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Brings the files of a folder to the disk, so that a power cut after a rename finds them whole."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Gives a temporary path beside ``path``, and renames it to ``path`` when the block ends without an error.

    The folder is made. The content reaches the disk before the name does, so a power cut cannot leave an empty file
    either. After an error the temporary file is gone and ``path`` is as it was.

    Raises:
        WriteError: the disk does not take it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: some writers choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_PARTIAL}{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all; a NaN or an infinity becomes null, which every reader understands."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], *, schema: pyarrow.Schema | None = None) -> None:
    """Writes one row a mapping, whole or not at all.

    Args:
        path: Where to.
        rows: Mappings with the same keys.
        schema: Column names and types; None infers them from the rows, which must then not be empty.
    """
    import pyarrow
    import pyarrow.parquet

    if schema is None and not rows:
        raise ValueError(f"{path}: no rows and no schema, so there is nothing to write")
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an unfinished last line, which a killed writer leaves, is ignored.

    Raises:
        ValueError: a line that is not the last cannot be read; nothing that we do writes such a file.
    """
    rows = []
    *lines, tail = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not tail:
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    write_text(path, "".join(jsonl_line(row) for row in rows))


def jsonl_line(row: Mapping[str, Any]) -> str:
    """One row of a JSON-lines file, line end included."""
    return json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same value with None for every NaN and infinity, at any depth; JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
