"""Rows of a table, wherever it lies, read one at a time: nothing is decoded, and nothing but text is held in memory.

Why these readers:

- Everything columnar goes through the ``datasets`` library: Arrow files that are mapped into memory, prepared once in
  its cache (``HF_DATASETS_CACHE``) under a name that holds the source's path, size and time, written whole or not at
  all and locked against other processes. The last of 100,000 rows costs no more than the first.
- Parquet is the exception in one function. ``datasets`` 5.2 reads a whole row group at once, and a file of SAT is one
  row group: pyarrow then takes as much memory as the file is long, or refuses (``Nested data conversions not
  implemented for chunked array outputs``). `_prepare_parquet` streams batches of bounded size instead.
- JSON lines have a reader of their own. ``datasets`` wants one type for each column over all rows, which tables made by
  hand do not keep, and it names no line when one is broken. Here the file is read once to find where each line begins;
  reading a row opens the file, reads one line and closes it.
"""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import pyarrow
    import pyarrow.parquet

_BATCH_BYTES = 32 << 20
"""What one batch of a parquet file may take in memory while it is prepared, as far as the file's own sizes tell."""
_BATCH_ROWS = 100
"""They count a repeated value once, so the rows of a batch are limited, too."""
_SCAN_ROWS = 1000
_JSON_LINES = {".jsonl", ".ndjson"}


class Rows(ABC):
    """A table's rows by number; images stay as they are stored: bytes, a path, or a struct of both."""

    origin: str
    """Where the table was found, for messages."""
    folder: Path
    """Where relative image paths begin."""
    columns: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row, with the bytes of its images. Raises IndexError."""

    @abstractmethod
    def outlines(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row with only these columns, and in the place of each bytes value their number: no image is touched."""

    def require(self, columns: Sequence[str]) -> None:
        """Raises ValueError if a column is not there."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise ValueError(f"{self.origin}: no column {missing[0]!r}; its columns are {', '.join(self.columns)}")


def open_rows(
    path: str | Path | None, *, name: str | None = None, split: str | None = None, data_files: Sequence[str] = ()
) -> Rows:
    """Opens a table without decoding anything.

    Args:
        path: A ``.parquet`` or ``.jsonl`` file; a folder (of parquet files, of images with their metadata, written by
            ``save_to_disk``, or a copy of a hub's repository); or a hub id, which is asked only if there is no such
            path. What a hub has sent is kept and found again without it. None and "" are refused with what to set.
        name: The configuration, where the repository has several.
        split: The split, where the folder or the repository has several.
        data_files: Names of the files to read, where path is a folder or a hub id, in place of a name and a split. Only
            these are fetched.

    Raises:
        ValueError: nothing can be read there; the message says what to do.
    """
    if not path:
        raise ValueError("no table is named; set dataset.path or benchmark.path to a file, a folder or a hub id")
    place = Path(path).expanduser()
    if place.is_file():
        if name or split:
            raise ValueError(f"{path}: a single file has no configurations and splits; leave name and split out")
        return _open_files([place], origin=str(path))
    if place.is_dir():
        if data_files:
            return _open_files([place / file for file in data_files], origin=str(path))
        return _open_folder(place, origin=str(path), name=name, split=split)
    if not _is_hub_id(str(path)):
        raise ValueError(f"{path}: there is no such file or folder, and it is no hub id (as owner/name) either")
    if data_files:
        return _open_files([_fetch(str(path), file) for file in data_files], origin=str(path))
    return _open_repository(str(path), name=name, split=split)


class ArrowRows(Rows):
    """Rows of a ``datasets.Dataset``, which maps its files into memory."""

    def __init__(self, dataset: datasets.Dataset, *, origin: str, folder: Path) -> None:
        self._dataset = dataset.with_format("arrow")  # never decodes, whatever the features say
        self.origin = origin
        self.folder = folder
        self.columns = tuple(dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._dataset[index].to_pylist()[0]

    def outlines(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not columns:
            yield from ({} for _ in range(len(self)))
            return
        for table in self._dataset.select_columns(list(columns)).iter(batch_size=_SCAN_ROWS):
            values = [[value for chunk in table[column].chunks for value in _outline(chunk)] for column in columns]
            for row in zip(*values, strict=True):
                yield dict(zip(columns, row, strict=True))


class JsonRows(Rows):
    """Rows of a JSON-lines file; a column that a line does not have is None. Empty lines are no rows."""

    def __init__(self, path: Path, *, origin: str) -> None:
        self._path = path
        self.origin = origin
        self.folder = path.parent
        self._starts = array("Q")
        self._numbers = array("L")
        columns: dict[str, None] = {}
        stat = path.stat()
        self._version = (stat.st_size, stat.st_mtime_ns)
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    columns.update(dict.fromkeys(self._parse(line, number)))
                    self._starts.append(start)
                    self._numbers.append(number)
                start += len(line)
        if not self._starts:
            raise ValueError(f"{origin}: holds no rows")
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        stat = self._path.stat()
        if (stat.st_size, stat.st_mtime_ns) != self._version:
            raise ValueError(f"{self.origin} was changed while it was being read; start again")
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            row = self._parse(file.readline(), self._numbers[index])
        return {column: row.get(column) for column in self.columns}

    def outlines(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = self._parse(line, number)
                    yield {column: row.get(column) for column in columns}

    def _parse(self, line: bytes, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.origin}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{self.origin}, line {number}: expected an object with a key a column, got {line[:40]!r}")
        return row


def _outline(values: pyarrow.Array) -> list[Any]:
    """The values as Python objects, with the number of bytes in the place of bytes, which stay on disk."""
    import pyarrow.compute
    from pyarrow import types

    kind = values.type
    if types.is_struct(kind):
        children = [_outline(child) for child in values.flatten()]
        names = [kind.field(number).name for number in range(kind.num_fields)]
        rows = zip(*children, strict=True)
        is_valid = values.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if valid else None for row, valid in zip(rows, is_valid, strict=True)
        ]
    if types.is_list(kind) or types.is_large_list(kind):
        if types.is_string(kind.value_type):
            return values.to_pylist()
        items = iter(_outline(values.flatten()))
        lengths = values.value_lengths().to_pylist()
        return [None if length is None else [next(items) for _ in range(length)] for length in lengths]
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pyarrow.compute.call_function("binary_length", [values]).to_pylist()
    return values.to_pylist()


def _open_files(files: Sequence[Path], *, origin: str) -> Rows:
    for file in files:
        if not file.is_file():
            raise ValueError(f"{origin}: there is no file {file}")
    kinds = {file.suffix.lower() for file in files}
    if kinds == {".parquet"}:
        return ArrowRows(_prepare_parquet(files, origin=origin), origin=origin, folder=files[0].parent)
    if kinds <= _JSON_LINES:
        if len(files) > 1:
            raise ValueError(f"{origin}: one JSON-lines file at a time, got {', '.join(file.name for file in files)}")
        return JsonRows(files[0], origin=origin)
    raise ValueError(
        f"{origin}: cannot read {', '.join(sorted(file.name for file in files))}; expected .parquet or .jsonl"
    )


def _open_folder(folder: Path, *, origin: str, name: str | None, split: str | None) -> Rows:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return ArrowRows(_load_saved(folder, origin=origin, split=split), origin=origin, folder=folder)
    return _open_source(str(folder), origin=origin, folder=folder, name=name, split=split)


def _load_saved(folder: Path, *, origin: str, split: str | None) -> datasets.Dataset:
    """What ``save_to_disk`` wrote."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise ValueError(f"{origin}: not a whole folder of save_to_disk ({_in_short(error)})") from error
    if isinstance(saved, datasets.DatasetDict):
        return saved[_choose_split(list(map(str, saved)), split, origin=origin)]
    if split is not None:
        raise ValueError(f"{origin}: holds one table without splits; leave split={split} out")
    return saved


def _open_repository(repository: str, *, name: str | None, split: str | None) -> Rows:
    """A hub's repository; where the hub does not answer, the files that it sent before."""
    from huggingface_hub import constants, file_download

    try:
        return _open_source(repository, origin=repository, folder=Path(), name=name, split=split)
    except ConnectionError as error:
        folder_name = file_download.repo_folder_name(repo_id=repository, repo_type="dataset")
        kept = list((Path(constants.HF_HUB_CACHE) / folder_name / "snapshots").glob("*"))
        if not kept:
            raise ValueError(_unreachable(repository, repository)) from error
    newest = max(kept, key=lambda folder: folder.stat().st_mtime)
    return _open_folder(newest, origin=repository, name=name, split=split)


def _open_source(source: str, *, origin: str, folder: Path, name: str | None, split: str | None) -> Rows:
    """Lets ``datasets`` find out what a folder or a repository holds, and reads one split of it.

    Raises:
        ConnectionError: the hub does not answer.
        ValueError: there is nothing to read, or it cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder = datasets.load_dataset_builder(source, name)
    except ConnectionError:
        raise
    except DatasetNotFoundError as error:
        raise ValueError(f"{origin}: no such path here, and on the hub: {_in_short(error)}") from error
    except (OSError, ValueError, DatasetsError) as error:
        # What the client of datasets 5.2 raises for a hub that answers with an error of its own, as 503.
        if "LocalEntryNotFoundError" in str(error):
            raise ConnectionError(_in_short(error)) from error
        raise ValueError(f"{origin}: {_in_short(error)}") from error
    data_files = {str(key): files for key, files in (builder.config.data_files or {}).items()}
    chosen = _choose_split(list(data_files), split, origin=origin)
    is_json_lines = isinstance(builder, Json) and {Path(file).suffix for file in data_files[chosen]} <= _JSON_LINES
    if isinstance(builder, Parquet) or is_json_lines:
        return _open_files([_local(file) for file in data_files[chosen]], origin=origin)
    return ArrowRows(_prepared(lambda: builder, chosen, origin=origin), origin=origin, folder=folder)


def _choose_split(splits: Sequence[str], split: str | None, *, origin: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is not None and split in splits:
        return split
    problem = "name one of its splits" if split is None else f"no split {split!r}; its splits are"
    raise ValueError(f"{origin}: {problem}: {', '.join(splits)}")


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII) is not None


def _local(file: str) -> Path:
    """The path of a data file, which is fetched if it lies on the hub: ``hf://datasets/OWNER/NAME@REVISION/FILE``."""
    match = re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.+)", file)
    return _fetch(match[1], match[3], revision=match[2]) if match else Path(file)


def _fetch(repository: str, file: str, *, revision: str | None = None) -> Path:
    """A file of a hub's repository; from the hub's cache where it lies there and the hub does not answer."""
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(_unreachable(repository, f"{repository} {file}")) from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{repository}: accept its terms on its page, then `hf auth login`, then start again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{repository}: no such path here, and no such data set on the hub that you may read"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{repository}: the hub has no file {file} there") from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ValueError(f"{repository}: {file} could not be fetched: {_in_short(error)}") from error


def _unreachable(repository: str, download: str) -> str:
    return (
        f"{repository}: no such path here, and the hub does not answer; download it once with "
        f"`hf download {download} --repo-type dataset`, or set path to a folder that holds its files"
    )


def _prepare_parquet(files: Sequence[Path], *, origin: str) -> datasets.Dataset:
    import pyarrow
    import pyarrow.parquet
    from datasets.builder import Key
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.parquet.parquet import Parquet

    class StreamedParquet(Parquet):
        def _generate_tables(self, files: Sequence[str], row_groups_list: Sequence[Any]) -> Iterator[Any]:
            for number, file in enumerate(files):
                # Without pre_buffer=False the whole row group is read ahead.
                with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
                    batches = parquet.iter_batches(batch_size=_batch_rows(parquet.metadata), use_threads=False)
                    for batch_number, batch in enumerate(batches):
                        yield Key(number, batch_number), self._cast_table(pyarrow.Table.from_batches([batch]))

    num_rows = 0
    for file in files:
        try:
            num_rows += pyarrow.parquet.read_metadata(file).num_rows
        except (OSError, ValueError) as error:
            raise ValueError(f"{origin}: {file.name} is not a whole parquet file ({_in_short(error)})") from error
    if not num_rows:
        raise ValueError(f"{origin}: holds no rows")
    paths = [str(file.absolute()) for file in files]
    versions = [(f"{path} {stat.st_size} {stat.st_mtime_ns}",) for path in paths for stat in (Path(path).stat(),)]
    data_files = DataFilesDict({"train": DataFilesList(paths, list(versions))})
    make = functools.partial(StreamedParquet, dataset_name="parquet", data_files=data_files)
    return _prepared(make, "train", origin=origin)


def _batch_rows(metadata: pyarrow.parquet.FileMetaData) -> int:
    num_bytes = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, num_bytes)))


def _prepared(make: Callable[[], datasets.DatasetBuilder], split: str, *, origin: str) -> datasets.Dataset:
    """What a builder makes, from the cache of ``datasets`` or written there now."""
    import datasets
    import datasets.config
    from datasets.exceptions import DatasetsError

    try:
        builder = make()
        builder.download_and_prepare()
        dataset = builder.as_dataset(split)
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ or error
        # What has a number comes from the file system: full, or not to be written to.
        is_of_disk = isinstance(cause, OSError) and cause.errno is not None
        where = f" in {datasets.config.HF_DATASETS_CACHE} (HF_DATASETS_CACHE names another place)" if is_of_disk else ""
        raise ValueError(f"{origin}: could not be prepared{where}: {_in_short(cause)}") from error
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(f"{origin}: expected one split, got {type(dataset).__name__}")
    return dataset


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())
