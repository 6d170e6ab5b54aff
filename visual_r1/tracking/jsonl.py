"""The record of a run: its numbers as JSON lines, its sampled rollouts as parquet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from visual_r1.files import jsonl_line, write_parquet, writing
from visual_r1.run_folder import RunFolder
from visual_r1.tracking.tracker import Context, RolloutRow


class JsonlTracker(Context):
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


def _number(key: str, value: Any) -> float | int | None:
    if value is None or isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{key} is {value!r}, not a number") from None
