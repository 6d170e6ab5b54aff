"""BLINK (BLINK-Benchmark/BLINK, arXiv 2404.12390): visual perception in 14 tasks, one to four images a question.

Each task is a configuration of the hub's repository and a folder in it, as ``Relative_Depth``, whose file
``val-00000-of-00001.parquet`` has 124 rows; ``Spatial_Relation`` has 143. Columns: ``idx`` (unique over all tasks),
``question``, ``sub_task``, ``image_1`` to ``image_4`` (null where there are fewer), ``choices``, ``answer`` as "(A)",
``prompt``, ``explanation``. The test split comes without answers, so only val is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.datasets.adapter import Item, TableExamples, position_of_letter, text, texts, with_choices
from visual_r1.datasets.rows import Rows, open_rows

IMAGES = ("image_1", "image_2", "image_3", "image_4")
_TASK = "task"
"""The column that `TaskRows` adds."""
_COLUMNS = ("idx", *IMAGES, "choices", "answer", "prompt")
_VAL = "val-00000-of-00001.parquet"


class Blink(TableExamples):
    """BLINK's questions, each put exactly as its ``prompt`` column does, with all of its images in their order.

    The development fork of VisualThinker-R1-Zero asks the same column of Relative_Depth and Spatial_Relation. It keeps
    the rows without a second image, which in these two tasks are all rows.

    Args:
        path: The hub id, or a folder that holds a folder a task, as the hub does.
        tasks: Names of tasks as the hub spells them; each becomes a category.
        size: How many examples, of the first tasks first; None for all.
        bad_rows: "error" or "skip": see `TableExamples`.

    Raises:
        ValueError: no task, one named twice, a table that cannot be read, or a bad row.
    """

    def __init__(self, *, path: str, tasks: Sequence[str], size: int | None = None, bad_rows: str = "error") -> None:
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"blink: tasks={list(tasks)}: expected one task or more, each named once")
        if path and Path(path).expanduser().is_file():
            raise ValueError(f"{path}: is one file; blink reads a folder that holds {tasks[0]}/{_VAL}")
        tables = {task: open_rows(path, data_files=[f"{task}/{_VAL}"]) for task in tasks}
        super().__init__(
            TaskRows(tables, origin=path), name="blink", columns=[_TASK, *_COLUMNS], size=size, bad_rows=bad_rows
        )

    def row_id(self, row: Mapping[str, Any], number: int) -> str:
        return f"{self.name}/{row['idx']}"

    def item(self, row: Mapping[str, Any]) -> Item:
        choices = texts(row, "choices")
        return Item(choices=choices, answer=position_of_letter(text(row, "answer"), choices), category=row[_TASK])

    def question(self, row: Mapping[str, Any], choices: Sequence[str]) -> str:
        return with_choices(text(row, "prompt"), row["choices"], choices)

    def images(self, row: Mapping[str, Any]) -> Any:
        return [row[column] for column in IMAGES if row[column] is not None]


class TaskRows(Rows):
    """Tables of the same columns one after another, with a column that names each row's table."""

    def __init__(self, tables: Mapping[str, Rows], *, origin: str) -> None:
        self._tables = dict(tables)
        first = next(iter(self._tables.values()))
        self.origin = origin
        self.folder = first.folder
        self.columns = (_TASK, *first.columns)

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    def __getitem__(self, index: int) -> dict[str, Any]:
        rest = index
        for task, table in self._tables.items():
            if 0 <= rest < len(table):
                return {**table[rest], _TASK: task}
            rest -= len(table)
        raise IndexError(f"row {index} of {len(self)}")

    def outlines(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        own = [column for column in columns if column != _TASK]
        for task, table in self._tables.items():
            for row in table.outlines(own):
                yield {**row, _TASK: task}

    def require(self, columns: Sequence[str]) -> None:
        """Raises ValueError if a column is not in every table."""
        for table in self._tables.values():
            table.require([column for column in columns if column != _TASK])
