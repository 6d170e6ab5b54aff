"""CV-Bench (nyu-visionx/CV-Bench, from Cambrian-1, arXiv 2406.16860): 2,638 questions on counts, relations and depth.

Its card lists ``idx`` (counted over both files), ``type`` (2D or 3D), ``task``, ``image``, ``question``, ``choices``,
``answer`` as "(A)", ``prompt``, ``filename``, ``source`` ("ADE20K", "COCO" or "Omni3D"), ``source_dataset`` and more;
``test_2d.parquet`` has 1,438 rows, ``test_3d.parquet`` 1,200. Where ``source`` is finer, as "Omni3D_SUNRGBD", its
collection is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.datasets.adapter import Item, TableExamples, position_of_letter, text, texts, with_choices
from visual_r1.datasets.rows import open_rows

COLUMNS = ("image", "question", "choices", "answer", "task", "prompt")


class CVBench(TableExamples):
    """CV-Bench's questions, each put exactly as its ``prompt`` column does, which the reference evaluates on.

    Args:
        path: The hub id, a folder of its parquet files or of ``save_to_disk``, or one file.
        split: The split of a folder or a hub's repository; None where there is none.
        size: How many examples, drawn from all rows; None for all.
        bad_rows: "error" or "skip": see `TableExamples`.

    Raises:
        ValueError: a table that cannot be read, or a bad row.
    """

    def __init__(
        self, *, path: str, split: str | None = "test", size: int | None = None, bad_rows: str = "error"
    ) -> None:
        rows = open_rows(path, split=None if path and Path(path).expanduser().is_file() else split)
        # Older copies say neither where an image is from nor which row it was.
        optional = [column for column in ("idx", "source") if column in rows.columns]
        super().__init__(
            rows, name="cvbench", columns=[*COLUMNS, *optional], size=size, is_drawn=True, bad_rows=bad_rows
        )

    def row_id(self, row: Mapping[str, Any], number: int) -> str:
        return f"{self.name}/{row.get('idx', number)}"

    def item(self, row: Mapping[str, Any]) -> Item:
        text(row, "question")  # a prompt without it is a list of choices
        choices = texts(row, "choices")
        source = text(row, "source") if row.get("source") else None
        return Item(
            choices=choices,
            answer=position_of_letter(text(row, "answer"), choices),
            category=text(row, "task"),
            subset="Omni3D" if source and source.startswith("Omni3D") else source,
        )

    def question(self, row: Mapping[str, Any], choices: Sequence[str]) -> str:
        """The ``prompt`` column, which is the question, ``Select from the following choices.`` and a choice a line."""
        return with_choices(text(row, "prompt"), row["choices"], choices)

    def images(self, row: Mapping[str, Any]) -> Any:
        return row["image"]
