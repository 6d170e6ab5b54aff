"""Where numbers go: JSON lines always, Weights & Biases beside them. The only module that knows wandb.

An algorithm returns numbers; whoever runs it hands them to a `Tracker`. A row belongs to an optimizer step, and steps
never go back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NotRequired, Protocol, Self, SupportsFloat, TypedDict

from PIL.Image import Image

from visual_r1.files import finite, jsonl_line, read_json, write_parquet, writing
from visual_r1.run_folder import RunFolder

_logger = logging.getLogger(__name__)
_DATA_DIR = "WANDB_DATA_DIR"
_PATIENCE_SECONDS = 5.0


class RolloutRow(TypedDict):
    """A sampled rollout as it is recorded."""

    example_id: str
    category: str
    images: Sequence[Image]
    """Shown in W&B; not written to parquet, since the example id brings them back."""
    question: str
    completion: str
    solution: str
    choice: str | None
    """The letter that the answer names; None when it names none."""
    correct: bool
    num_tokens: int
    is_truncated: bool
    keyword_hits: Sequence[str]
    scores: NotRequired[Mapping[str, float]]
    """Each reward term's score before its weight. This and what follows exist where something is trained only."""
    advantage: NotRequired[float]
    group: NotRequired[int]
    """Rollouts of one prompt share this number within their step."""


class Tracker(Protocol):
    """Takes the numbers of one run. A context manager: leaving it finishes the record."""

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        """Records values of a step; several calls for one step are one row, and None or NaN means not measured."""

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        """Records sampled rollouts of a step; `name` says where they come from, "train" or "probe"."""

    def finish(self) -> None:
        """Writes what is still held. Nothing may be logged afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _Context:
    """Finishes a tracker when its block ends, however it ends."""

    def finish(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()


class JsonlTracker(_Context):
    """Writes ``metrics.jsonl`` and ``completions/`` of a run folder.

    The row of the current step is rewritten in place with every call, so a killed process loses at most the call that
    it died in. On an existing file the tracker goes on with its last step.

    Raises:
        ValueError: a step before the current one. Call `RunFolder.truncate_metrics` before resuming.
        TypeError: a value that is no number.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        # A torn last line would swallow the first new row.
        rows = folder.read_metrics()
        folder.truncate_metrics(rows[-1]["step"] if rows else -1)
        self._row: dict[str, Any] = rows[-1] if rows else {}
        folder.metrics.touch()
        self._offset = folder.metrics.stat().st_size - (len(jsonl_line(self._row).encode()) if rows else 0)

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        if self._row and step < self._row["step"]:
            raise ValueError(f"step {step} was logged after step {self._row['step']}")
        if not self._row or step > self._row["step"]:
            self._offset = self._folder.metrics.stat().st_size
            self._row = {"step": step}
        self._row |= {key: _number(key, value) for key, value in values.items()}
        ordered = {"step": step, **{key: self._row[key] for key in sorted(self._row) if key != "step"}}
        # Opened anew for each row: after a refused write nothing is left in a buffer, to be refused again at the end.
        with writing(self._folder.metrics), self._folder.metrics.open("r+b") as file:
            file.seek(self._offset)
            file.write(jsonl_line(ordered).encode())
            file.truncate()
            os.fsync(file.fileno())  # a checkpoint that outlives a power cut takes for granted that its rows have

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        write_rollouts(self._folder.completions_at(step), rows, name=name)

    def finish(self) -> None:
        """Has nothing left to write."""


class WandbTracker(_Context):
    """Shows a run in Weights & Biases: offline by default, into the run folder, with nothing sent anywhere.

    A tracker must never stop a run. wandb may be missing, slow, without a key or without a server; then one warning
    says so, this tracker falls silent, and ``metrics.jsonl`` has the numbers anyway. wandb's own process writes the
    file now and then: of a killed run it may lack the last second, which is why the record is ``metrics.jsonl``.

    Args:
        folder: The run folder; wandb writes to its ``wandb/``.
        config: The resolved configuration, shown beside the curves.
        mode: "offline" writes files that ``wandb sync`` uploads later; "online" uploads at once.
        project: The project that the run is filed under.
        name: The run's name.
        group: What the seeds of one name share, so that W&B draws them as one curve with a band.
        tags: Words to find the run by.
        timeout_seconds: How long the start, and the last upload at the end, may take.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        config: Mapping[str, Any],
        mode: Literal["offline", "online"] = "offline",
        project: str = "visual-r1",
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        timeout_seconds: float = 60.0,
    ) -> None:
        self._run: Any = None
        self._step: int | None = None
        self._row: dict[str, Any] = {}
        # wandb stages a table's images in the user's home unless told otherwise; they belong to the run.
        self._keeps_data_dir = _DATA_DIR in os.environ

        def start() -> None:
            import wandb

            if mode == "online" and not wandb.login(prompt=False, verify=False):
                raise RuntimeError("no API key; run `wandb login`, or use tracker=offline")
            if not self._keeps_data_dir:
                os.environ[_DATA_DIR] = str(folder.path.resolve() / "wandb")
            settings = wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,  # provenance.json has the commit, and a remote's address may hold a token
                init_timeout=timeout_seconds,
                finish_timeout=timeout_seconds,
            )
            self._run = wandb.init(
                project=project,
                dir=folder.path,
                id=_run_id(folder),
                name=name or "/".join(folder.path.parts[-2:]),
                group=group,
                tags=list(tags),
                config=dict(config),
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=settings,
                reinit="create_new",
            )
            self._run.define_metric("step")
            # Not log(step=...): wandb drops rows behind its own counter, which a resumed run has to write again.
            self._run.define_metric("*", step_metric="step")

        self._attempt("start", start)

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        self._begin(step)
        self._row |= {key: value for key, value in finite(dict(values)).items() if value is not None}

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        self._begin(step)

        def add_table() -> None:
            self._row[f"rollouts/{name}"] = _table(rows, step=step)

        self._attempt("take rollouts", add_table)

    def finish(self) -> None:
        self._write_row()

        def end() -> None:
            self._run.finish()
            self._await_file()

        self._attempt("finish", end)
        self._run = None
        if not self._keeps_data_dir:
            os.environ.pop(_DATA_DIR, None)

    def _await_file(self) -> None:
        # wandb 0.31 comes back from finish() before its own process has written the file, so a reader would find half.
        file = Path(self._run.settings.sync_file)
        patience = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < patience and not (file.exists() and read_offline_wandb(file).is_complete):
            time.sleep(0.02)

    def _begin(self, step: int) -> None:
        if step != self._step:
            self._write_row()
            self._step = step

    def _write_row(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._attempt("log", lambda: self._run.log({**row, "step": self._step}))

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        if self._run is None and what != "start":
            return
        try:
            action()
        # wandb raises its own errors, the network's, the file system's and its service's. None of them is worth a run,
        # and all numbers are in metrics.jsonl; hence the one broad except of the project.
        except Exception as error:
            self._run = None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            _logger.warning("W&B could not %s (%s); the run goes on without it", what, reason[0])


class FanOut(_Context):
    """Hands everything to several trackers, in order; all are finished even if one of them fails to."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        for tracker in self._trackers:
            tracker.log_rollouts(rows, step=step, name=name)

    def finish(self) -> None:
        with ExitStack() as stack:
            for tracker in reversed(self._trackers):
                stack.callback(tracker.finish)


def write_rollouts(path: Path, rows: Sequence[RolloutRow], *, name: str) -> None:
    """Writes sampled rollouts to parquet, one a row, with a column ``score/<term>`` for each reward term.

    A step's file holds the rollouts of every source, told apart by the column ``source``; those that the file already
    holds under `name` are replaced, so that a resumed run writes what an uninterrupted one does.
    """
    import pyarrow
    import pyarrow.parquet

    kept = pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []
    kept = [row for row in kept if row["source"] != name]
    added: list[dict[str, Any]] = [
        {
            "source": name,
            **{key: value for key, value in row.items() if key not in ("images", "scores")},
            **{f"score/{term}": score for term, score in row.get("scores", {}).items()},
        }
        for row in rows
    ]
    merged = sorted(kept + added, key=lambda row: row["source"])  # stable: the order within a source stays
    terms = dict.fromkeys(key for row in merged for key in row if key.startswith("score/"))
    schema = pyarrow.schema(
        [
            ("source", pyarrow.string()),
            ("example_id", pyarrow.string()),
            ("category", pyarrow.string()),
            ("group", pyarrow.int32()),
            ("question", pyarrow.string()),
            ("completion", pyarrow.string()),
            ("solution", pyarrow.string()),
            ("choice", pyarrow.string()),
            ("correct", pyarrow.bool_()),
            ("num_tokens", pyarrow.int32()),
            ("is_truncated", pyarrow.bool_()),
            ("advantage", pyarrow.float64()),
            ("keyword_hits", pyarrow.list_(pyarrow.string())),
            *((term, pyarrow.float64()) for term in sorted(terms)),
        ]
    )
    write_parquet(path, merged, schema=schema)


@dataclass(frozen=True, kw_only=True)
class WandbRecord:
    """What an offline wandb run has written."""

    run_id: str = ""
    name: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    """One mapping a logged row, wandb's own columns (``_step``, ``_timestamp``, ``_runtime``) included."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The last value of each curve."""
    is_complete: bool = False
    """The run was finished; a killed one was not."""


def read_offline_wandb(path: Path) -> WandbRecord:
    """Reads a ``.wandb`` file back, as far as it goes: what a killed process left unfinished at its end is ignored.

    wandb has no public reader for these files; ``wandb leet`` shows them in a terminal.

    Raises:
        ValueError: the file is not wandb's.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    record: dict[str, Any] = {}
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    is_complete = False
    for data in _log_records(path):
        message = wandb_internal_pb2.Record()  # ty: ignore[missing-attribute]
        try:
            message.ParseFromString(data)
        except DecodeError:
            break
        match message.WhichOneof("record_type"):
            case "run":
                run = message.run
                record = {
                    "run_id": run.run_id,
                    "name": run.display_name,
                    "group": run.run_group,
                    "tags": tuple(run.tags),
                }
                config |= _values(run.config.update)
            case "config":
                config |= _values(message.config.update)
            case "history":
                history.append(_values(message.history.item))
            case "summary":
                summary |= _values(message.summary.update)
            case "exit":
                is_complete = True
    return WandbRecord(**record, config=config, history=tuple(history), summary=summary, is_complete=is_complete)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """The values of wandb's key-value items; a table or an image is a mapping whose entries come one by one."""
    values: dict[str, Any] = {}
    for item in items:
        *outer, last = [item.key] if item.key else item.nested_key
        level = values
        for key in outer:
            level = level.setdefault(key, {})
        level[last] = json.loads(item.value_json)
    return values


_BLOCK_BYTES = 32768
_HEADER_BYTES = 7
_FULL, _LAST = 1, 4


def _log_records(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB-style log: blocks of 32 KiB, and a record that crosses their border comes in parts."""
    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is not a wandb file")
    position = _HEADER_BYTES
    parts: list[bytes] = []
    while position + _HEADER_BYTES <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER_BYTES:
            position += left_in_block
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0 and length == 0:  # the padding of a block
            position += left_in_block
            continue
        position += _HEADER_BYTES
        if position + length > len(data):
            return
        parts.append(data[position : position + length])
        position += length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def _table(rows: Sequence[RolloutRow], *, step: int) -> Any:
    import wandb

    cells = [
        {
            "step": step,
            "example": row["example_id"],
            "category": row["category"],
            # A cell holds one value: the first image, or nothing.
            "image": wandb.Image(row["images"][0]) if row["images"] else None,
            "question": row["question"],
            "completion": row["completion"],
            "solution": row["solution"],
            "choice": row["choice"],
            "correct": row["correct"],
            "tokens": row["num_tokens"],
            "reflection": ", ".join(row["keyword_hits"]),
            "advantage": row.get("advantage"),
            **{f"score/{term}": score for term, score in row.get("scores", {}).items()},
        }
        for row in rows
    ]
    columns: list[str | int] = list(dict.fromkeys(key for row in cells for key in row))
    return wandb.Table(columns=columns, data=[[row.get(column) for column in columns] for row in cells])


def _run_id(folder: RunFolder) -> str:
    """An id that a resumed run shares with its start, and a run that was deleted and made anew does not."""
    started = read_json(folder.provenance)["started"] if folder.provenance.exists() else ""
    return hashlib.sha256("\n".join([*folder.path.parts[-2:], started]).encode()).hexdigest()[:12]


def _number(key: str, value: Any) -> float | int | None:
    if value is None or isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{key} is {value!r}, not a number") from None
