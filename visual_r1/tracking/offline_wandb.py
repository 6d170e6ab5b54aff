"""Reads the file that an offline W&B run has written."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class WandbRecord:
    """What an offline wandb run has written."""

    run_id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    """One mapping a logged row, wandb's own columns (``_step``, ``_timestamp``, ``_runtime``) included."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What the runs table shows: the last value of each curve, or a mapping of what was asked for instead."""
    step_axes: dict[str, str] = field(default_factory=dict)
    """The curve that each curve is drawn against."""
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    """The files of each artifact, by their names in it."""
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
    step_axes: dict[str, str] = {}
    artifacts: dict[str, set[str]] = {}
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
                    "project": run.project,
                    "name": run.display_name,
                    "group": run.run_group,
                    "job_type": run.job_type,
                    "tags": tuple(run.tags),
                }
                config |= _values(run.config.update)
            case "config":
                config |= _values(message.config.update)
            case "history":
                history.append(_values(message.history.item))
            case "summary":
                summary |= _values(message.summary.update)
            case "metric":
                step_axes[message.metric.name] = message.metric.step_metric
            case "artifact":
                artifacts[message.artifact.name] = {entry.path for entry in message.artifact.manifest.contents}
            case "exit":
                is_complete = True
    return WandbRecord(
        **record,
        config=config,
        history=tuple(history),
        summary=summary,
        step_axes=step_axes,
        artifacts=artifacts,
        is_complete=is_complete,
    )


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
