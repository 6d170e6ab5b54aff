"""SAT (array/SAT, arXiv 2412.07755): spatial questions about simulated rooms, one image or several, answered in words.

Read on its card, on that of array/SAT-v2 and in code that uses it: ``SAT_static.parquet`` has 127,405 questions about
one image each; ``SAT_train.parquet`` 172,384, of which the first 127,405 have ``question_type`` "other", as the static
ones do, and the rest ask about motion and other viewpoints, some with two images; ``SAT_val.parquet`` has 4,001 and
``SAT_test.parquet`` 150, about photographs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from visual_r1.datasets.adapter import Item, TableExamples, position_of_words, text, texts
from visual_r1.datasets.rows import open_rows

SPLITS = ("train", "static", "val", "test")
COLUMNS = ("image_bytes", "question", "answers", "question_type", "correct_answer")


class Sat(TableExamples):
    """SAT's questions in the wording of VisualThinker-R1-Zero, whose training data they were.

    Choices stay the list that they are: splitting their text at commas, as its code did, breaks one that holds a comma.
    Their order is shuffled row by row, as SAT's card asks. An answer that differs from a choice by capitals or outer
    blanks alone means that choice; SFT is taught the choice as it is offered.

    Args:
        path: The hub id, a folder with the hub's files, or one parquet file.
        split: "train", "static", "val" or "test".
        seed: Of the choices' order; a row's order depends on nothing else but its id.
        first_rows: How many rows of the table to look at; None for all.
        max_images: Leaves out rows with more images; None for no limit.
        size: How many examples; None for all.
        is_drawn: Whether they are drawn from all rows or are the first ones.
        bad_rows: "error" or "skip": see `TableExamples`.

    Raises:
        ValueError: an unknown split, a table that cannot be read, or a bad row.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str,
        seed: int = 0,
        first_rows: int | None = None,
        max_images: int | None = None,
        size: int | None = None,
        is_drawn: bool = False,
        bad_rows: str = "error",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"sat: no split {split!r}, expected one of {', '.join(SPLITS)}")
        self._max_images = max_images
        self._num_dropped = 0
        super().__init__(
            open_rows(path, data_files=[f"SAT_{split}.parquet"]),
            name=f"sat/{split}",
            columns=COLUMNS,
            size=size,
            is_drawn=is_drawn,
            first_rows=first_rows,
            bad_rows=bad_rows,
            shuffle_seed=seed,
        )
        if self._num_dropped:
            print(
                f"{self.name}: {len(self)} rows remain, {self._num_dropped} have more than {max_images} images",
                file=sys.stderr,
            )

    def wants(self, row: Mapping[str, Any], number: int) -> bool:
        stored = row["image_bytes"]
        if self._max_images is None or not isinstance(stored, list) or len(stored) <= self._max_images:
            return True
        self._num_dropped += 1
        return False

    def item(self, row: Mapping[str, Any]) -> Item:
        choices = texts(row, "answers")
        return Item(
            choices=choices,
            answer=position_of_words(text(row, "correct_answer"), choices),
            category=text(row, "question_type") if row["question_type"] else "unknown",
            is_answered_in_words=True,
        )

    def question(self, row: Mapping[str, Any], choices: Sequence[str]) -> str:
        """The wording of its ``src/data/SAT/process_dataset.py``, commit cd71978."""
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        return f"Answer in natural language. {text(row, 'question')} Choose between the following options: {listed}"

    def images(self, row: Mapping[str, Any]) -> Any:
        return row["image_bytes"]
