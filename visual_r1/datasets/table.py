"""Your own table of visual questions: a parquet or JSON-lines file, a folder, or a hub id, with columns named by you.

Where the choices of a question come from is decided in this order, and nothing is guessed:

1. ``choices=from_answers``: all answers that the table gives to questions of the same category, at most 26 of them.
2. Else the choices column, if there is one.
3. Else the list "(A) ... (B) ..." in the question (`visual_r1.datasets.layouts.listed_choices`).
4. Else the row is bad.

A question that does not list its choices gets the list, as CV-Bench writes it: a letter that was never offered cannot
be an answer. The solution names its choice by the letter ("B", "(B)"), by its words, or by both when they agree, inside
answer tags or not: the rule by which completions are read.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from visual_r1.datasets.adapter import Item, TableExamples, text
from visual_r1.datasets.layouts import (
    LAYOUTS,
    Layout,
    listed_choices,
    offer,
    plain_text,
    question_text,
    short,
    solution_text,
    without_placeholders,
)
from visual_r1.datasets.rows import Rows, open_rows
from visual_r1.parsing import parse_choice

CHOICES = ("as_written", "from_answers")
PARTS = ("all", "train", "probe")
_REQUIRED = ("images", "question", "solution")
_MAX_CHOICES = len(ascii_uppercase)


class Table(TableExamples):
    """Examples of a table's rows.

    `part` divides one table: the `probe_rows` rows whose ids (or numbers, where there is no column of ids) have the
    smallest SHA-256 are the probe, all others are for training. Rows are divided, not images: where several rows ask
    about one image, give the probe a table of its own.

    Args:
        path: A ``.parquet`` or ``.jsonl`` file, a folder, or a hub id (`visual_r1.datasets.rows.open_rows`).
        layout: Whose names the columns have: see `LAYOUTS`.
        columns: Other names, by the fields of `Layout`; None leaves the layout's.
        choices: "as_written" or "from_answers": where the choices come from.
        part: "all", "train" or "probe".
        probe_rows: How many rows the probe takes; of no effect where part is "all".
        config: The configuration, where a folder or a hub's repository has several.
        split: The split, where it has several.
        image_root: Where relative image paths begin; None for the table's own folder.
        size: How many examples; None for all.
        shuffle_seed: Puts each row's choices into an order of its own; None keeps the table's.
        bad_rows: "error" or "skip": see `TableExamples`.

    Raises:
        ValueError: an argument out of its range, a table that cannot be read, a missing column, answers that cannot be
            choices, or a bad row.
    """

    def __init__(
        self,
        *,
        path: str | None,
        layout: str = "columns",
        columns: Mapping[str, str | None] | None = None,
        choices: str = "as_written",
        part: str = "all",
        probe_rows: int | None = None,
        config: str | None = None,
        split: str | None = None,
        image_root: str | None = None,
        size: int | None = None,
        shuffle_seed: int | None = None,
        bad_rows: str = "error",
    ) -> None:
        for key, value, known in (("layout", layout, LAYOUTS), ("choices", choices, CHOICES), ("part", part, PARTS)):
            if value not in known:
                raise ValueError(f"table: {key}={value}: expected one of {', '.join(known)}")
        rows = open_rows(path, name=config, split=split)
        if image_root is not None:
            rows.folder = Path(image_root).expanduser()
        self.name = Path(rows.origin).stem
        self._column = _find_columns(rows, LAYOUTS[layout], columns or {})
        self._answers = self._collect_answers(rows) if choices == "from_answers" else None
        self._part = part
        self._probe = frozenset() if part == "all" else self._choose_probe(rows, probe_rows)
        super().__init__(
            rows,
            name=self.name,
            columns=list(self._column.values()),
            size=size,
            shuffle_seed=shuffle_seed,
            bad_rows=bad_rows,
        )

    def wants(self, row: Mapping[str, Any], number: int) -> bool:
        return self._part == "all" or (number in self._probe) == (self._part == "probe")

    def row_id(self, row: Mapping[str, Any], number: int) -> str:
        return f"{self.name}/{row[self._column['id']] if 'id' in self._column else number}"

    def item(self, row: Mapping[str, Any]) -> Item:
        solution = solution_text(row[self._column["solution"]])
        choices = self._choices(row)
        if len(choices) > _MAX_CHOICES:
            raise ValueError(f"{len(choices)} choices, expected 2 to {_MAX_CHOICES}")
        letter = parse_choice(solution, choices)
        if letter is None:
            raise ValueError(f"the solution {short(solution)} does not name one of the choices {list(choices)}")
        answer = ascii_uppercase.index(letter)
        return Item(
            choices=choices,
            answer=answer,
            category=self._category(row),
            is_answered_in_words=_folded(solution) == _folded(choices[answer]),
            thought=text(row, self._column["thought"]) if "thought" in self._column else None,
        )

    def question(self, row: Mapping[str, Any], choices: Sequence[str]) -> str:
        return offer(self._text(row), self._choices(row), choices)

    def images(self, row: Mapping[str, Any]) -> Any:
        return row[self._column["images"]]

    def _text(self, row: Mapping[str, Any]) -> str:
        """The question as it is written, without placeholders of images."""
        images = self.images(row)
        num_images = len(images) if isinstance(images, list) else int(images is not None)
        written = without_placeholders(question_text(row[self._column["question"]]), num_images)
        if not written.strip():
            raise ValueError("the question is empty")
        return written

    def _category(self, row: Mapping[str, Any]) -> str:
        if "category" not in self._column:
            return self.name
        category = plain_text(row[self._column["category"]])
        if not category:
            raise ValueError(f"{self._column['category']} is empty")
        return category

    def _choices(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if self._answers is not None:
            return self._answers[self._category(row)]
        if "choices" in self._column:
            cell = row[self._column["choices"]]
            if not isinstance(cell, list):
                raise ValueError(f"{self._column['choices']} is {short(cell)}, expected a list of choices")
            return tuple(plain_text(choice) for choice in cell)
        choices = listed_choices(self._text(row))
        if choices is None:
            raise ValueError(
                'the question lists no choices as "(A) ... (B) ..." and the table has no column of them; where its '
                "answers are a few words or numbers, choices=from_answers makes these the choices"
            )
        return choices

    def _collect_answers(self, rows: Rows) -> dict[str, tuple[str, ...]]:
        """All answers by category, numbers by value and words by alphabet, so that no order of rows matters."""
        found: dict[str, dict[str, str]] = {}
        needed = [self._column[field] for field in ("solution", "category") if field in self._column]
        for row in rows.outlines(needed):
            try:
                category, answer = self._category(row), solution_text(row[self._column["solution"]])
            except ValueError:
                continue  # the row is bad, and is named when all of it is read
            spellings = found.setdefault(category, {})
            spellings[_folded(answer)] = min(answer, spellings.get(_folded(answer), answer))
        answers = {category: _in_order(spellings.values()) for category, spellings in found.items()}
        for category, choices in answers.items():
            if not 2 <= len(choices) <= _MAX_CHOICES:
                raise ValueError(
                    f"{rows.origin}: choices=from_answers: {len(choices)} different answers in the category {category} "
                    f"({', '.join(choices[:3])}...), expected 2 to {_MAX_CHOICES}: add a column of choices, or name a "
                    "category column that divides the questions by kind"
                )
            for letter, choice in zip(ascii_uppercase, choices, strict=False):
                if parse_choice(choice, choices) != letter:
                    raise ValueError(
                        f"{rows.origin}: choices=from_answers: the answer {choice} in the category {category} is also "
                        "the letter of another; add a column of choices"
                    )
        return answers

    def _choose_probe(self, rows: Rows, num_rows: int | None) -> frozenset[int]:
        """The numbers of the probe's rows."""
        if num_rows is None or not 0 < num_rows < len(rows):
            raise ValueError(
                f"{rows.origin}: probe_rows={num_rows} of {len(rows)} rows: expected at least 1, and fewer than there "
                "are, so that some are left to train on; scale.probe_size sets it"
            )
        if "id" in self._column:
            keys = [row[self._column["id"]] for row in rows.outlines([self._column["id"]])]
        else:
            keys = list(range(len(rows)))
        return frozenset(heapq.nsmallest(num_rows, range(len(rows)), key=lambda number: _hash(str(keys[number]))))


def _find_columns(rows: Rows, layout: Layout, named: Mapping[str, str | None]) -> dict[str, str]:
    """The column of each field; fields that may be absent and are, are left out."""
    known = [field.name for field in fields(Layout)]
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ValueError(f"table: columns.{unknown[0]}: expected one of {', '.join(known)}")
    columns = {}
    for field in known:
        own = named.get(field)
        names = (own,) if own is not None else getattr(layout, field)
        there = [name for name in names if name in rows.columns]
        if len(there) > 1:
            raise ValueError(f"{rows.origin}: both {' and '.join(there)} are there; say which with columns.{field}")
        if there:
            columns[field] = there[0]
        elif own is not None or field in _REQUIRED:
            raise ValueError(
                f"{rows.origin}: no column {' or '.join(names)}; its columns are {', '.join(rows.columns)}; "
                f"say which holds the {field} with columns.{field}"
            )
    return columns


def _in_order(words: Iterable[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(words, key=lambda word: (Fraction(word), word)))
    except (ValueError, ZeroDivisionError):
        return tuple(sorted(words, key=str.casefold))


def _folded(words: str) -> str:
    """How `parse_choice` compares words."""
    return words.strip().removesuffix(".").strip().casefold()


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
