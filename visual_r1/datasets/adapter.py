"""What all data sets read from a table share: rows become examples one at a time, and bad rows are found at the start.

An adapter says what a row means (`TableExamples.item`, `question`, `images`). Everything else is here: each row's text,
and that its images are there, is checked when the data set is built; pixels are decoded when an example is read.
"""

from __future__ import annotations

import copy
import hashlib
import re
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from string import ascii_uppercase as _LETTERS
from typing import Any, Self, overload

from PIL.Image import Image
from tqdm.auto import tqdm

from visual_r1.datasets.decoding import decode_images, stored_sizes
from visual_r1.datasets.rows import Rows
from visual_r1.examples import Example
from visual_r1.parsing import parse_choice

BAD_ROWS = ("error", "skip")
_MARKUP = re.compile(r"<\|\w+\|>")
"""Special tokens of the Qwen family."""
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a row says, beside its question and its images."""

    choices: tuple[str, ...]
    """In the order of the table."""
    answer: int
    """The position of the right one among the choices, from 0."""
    category: str
    subset: str | None = None
    is_answered_in_words: bool = False
    """The data writes the right choice's words, not its letter: `Example.solution_as_written`."""
    thought: str | None = None
    """`Example.thought`."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that no example can be made of."""

    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


class TableExamples(Sequence[Example], ABC):
    """Examples of a table's rows, each made when it is read.

    Raises:
        ValueError: a column is missing, or a row is bad and `bad_rows` is "error"; with the first bad row's id.
    """

    columns: tuple[str, ...]
    """The columns that the adapter reads, image columns included."""

    def __init__(
        self,
        rows: Rows,
        *,
        name: str,
        columns: Sequence[str],
        size: int | None = None,
        first_rows: int | None = None,
        bad_rows: str = "error",
        shuffle_seed: int | None = None,
        is_drawn: bool = False,
    ) -> None:
        """Reads every row's text.

        Args:
            rows: The table.
            name: What ids begin with, as ``sat/static``.
            columns: What `item`, `question` and `images` read.
            size: How many examples; None for all. Rows after the last one that is needed are not looked at.
            first_rows: How many rows of the table to look at; None for all.
            bad_rows: "error" stops at a row that makes no example; "skip" leaves such rows out and says how many.
            shuffle_seed: Puts each row's choices into an order of its own, decided by this seed and the row's id alone;
                None keeps the table's.
            is_drawn: Draws the `size` rows from all of them, the same each time, in place of the first ones: a table is
                often sorted by kind.
        """
        for key, value in (("size", size), ("first_rows", first_rows)):
            if value is not None and value < 0:
                raise ValueError(f"{name}: {key}={value}: expected null or a number that is not negative")
        if bad_rows not in BAD_ROWS:
            raise ValueError(f"{name}: bad_rows={bad_rows}: expected one of {', '.join(BAD_ROWS)}")
        rows.require(columns)
        self.rows = rows
        self.name = name
        self.columns = tuple(columns)
        self.bad: list[BadRow] = []
        """The rows left out because they are bad, in the table's order."""
        self._shuffle_seed = shuffle_seed
        self._num_steps = 0
        self._kept = array("Q")
        self._digest = self._scan(size=None if is_drawn else size, first_rows=first_rows)
        if is_drawn and size is not None:
            self._draw(size)
        if self.bad:
            counted = f"{len(self.bad)} bad row{'s' * (len(self.bad) > 1)}"
            if bad_rows == "error":
                raise ValueError(
                    f"{rows.origin}: {counted}, the first is {self.bad[0]}; mend the table, where `visual-r1 data "
                    "check` names all of them, or leave such rows out with bad_rows=skip"
                )
            print(f"{rows.origin}: left out {counted}, the first is {self.bad[0]}", file=sys.stderr)

    @abstractmethod
    def item(self, row: Mapping[str, Any]) -> Item:
        """What a row says. Raises ValueError with the reason if it says nothing that makes sense."""

    @abstractmethod
    def question(self, row: Mapping[str, Any], choices: Sequence[str]) -> str:
        """The question that offers the choices in the order given. Raises ValueError if it cannot be put so."""

    @abstractmethod
    def images(self, row: Mapping[str, Any]) -> Any:
        """A row's images as they are stored: one, or a list of them (`visual_r1.datasets.decoding`)."""

    def row_id(self, row: Mapping[str, Any], number: int) -> str:
        """An example's id; `number` counts the table's rows from 0."""
        return f"{self.name}/{number}"

    def wants(self, row: Mapping[str, Any], number: int) -> bool:
        """Whether a row belongs to the selection; its images are numbers of bytes, `number` is as for `row_id`."""
        return True

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = self._kept[index]
        row = self.rows[number]
        example_id = self.row_id(row, number)
        images = decode_images(self.images(row), folder=self.rows.folder, example_id=example_id)
        return self._example(row, example_id, images)

    def ids(self) -> list[str]:
        """The examples' ids, in order; no image is touched."""
        kept = set(self._kept)
        rows = enumerate(self.rows.outlines(self.columns))
        by_number = {number: self.row_id(row, number) for number, row in rows if number in kept}
        return [by_number[number] for number in self._kept]

    def rotated(self, num_steps: int) -> Self:
        """The same examples with each row's choices moved on by some places, for consistency under swapped options.

        Ids, images and right choices stay; letters and questions change. `num_steps` counts around: a row with two
        choices is back where it was after two steps.

        Raises:
            ValueError: a row's question cannot be put with its choices in another order.
        """
        other = copy.copy(self)
        other._num_steps = self._num_steps + num_steps
        kept = set(self._kept)
        for number, row in enumerate(self.rows.outlines(self.columns)):
            if number in kept:
                other._example(row, self.row_id(row, number), ())  # a row that cannot be put so says it now
        return other

    def fingerprint(self) -> str:
        """A hash of all that decides the examples: the text of each and the sizes of its images' files."""
        return hashlib.sha256(f"{self._digest} {self._num_steps}".encode()).hexdigest()[:16]

    def _scan(self, *, size: int | None, first_rows: int | None) -> str:
        """Finds the rows to keep and the bad ones; returns a hash of the examples that the kept rows make."""
        digest = hashlib.sha256()
        seen: set[int] = set()
        outlines = islice(self.rows.outlines(self.columns), first_rows)
        for number, row in enumerate(
            tqdm(outlines, desc=f"reading {self.name}", unit="row", delay=2, mininterval=1, leave=False)
        ):
            if size is not None and len(self._kept) == size:
                break
            if not self.wants(row, number):
                continue
            example_id = self.row_id(row, number)
            try:
                if hash(example_id) in seen:
                    raise ValueError("another row has the same id")
                seen.add(hash(example_id))
                example = self._example(row, example_id, ())
                sizes = stored_sizes(self.images(row), folder=self.rows.folder, example_id=example_id)
            except ValueError as error:
                self.bad.append(BadRow(id=example_id, reason=_reason(error, example_id)))
                continue
            self._kept.append(number)
            digest.update(f"{example!r} {sizes}".encode())
            if example.thought is not None:
                digest.update(f" {example.thought}".encode())
        return digest.hexdigest()

    def _draw(self, size: int) -> None:
        """Keeps that many rows, which a hash of their numbers chooses, in the table's order."""
        by_chance = sorted(self._kept, key=lambda number: _hash(f"{self.name}/{number}"))
        self._kept = array("Q", sorted(by_chance[:size]))
        self._digest = f"{self._digest} {size}"

    def _example(self, row: Mapping[str, Any], example_id: str, images: tuple[Image, ...]) -> Example:
        try:
            item = self.item(row)
            if len(item.choices) < 2:
                raise ValueError(f"{len(item.choices)} choices, expected at least 2")
            if not all(choice.strip() for choice in item.choices):
                raise ValueError(f"a choice is empty: {list(item.choices)}")
            order = self._order(len(item.choices), example_id)
            choices = tuple(item.choices[position] for position in order)
            question = self.question(row, choices)
            # A processor would count "<|image_pad|>" as one more image, and the run would stop at this row.
            for name, written in (("question", question), ("thought", item.thought or "")):
                if markup := _MARKUP.search(written):
                    raise ValueError(f"the {name} holds {markup[0]}, which is mark-up to a model, not text: remove it")
            if item.thought is not None and (tag := _TAG.search(item.thought)):
                raise ValueError(f"the thought holds {tag[0]}: give the reasoning alone, the tags are put around it")
            example = Example(
                id=example_id,
                images=images,
                question=question,
                choices=choices,
                solution=_LETTERS[order.index(item.answer) :][:1],
                category=item.category,
                subset=item.subset,
                solution_as_written=item.choices[item.answer] if item.is_answered_in_words else None,
                thought=item.thought,
            )
            # "A" as the words of choice B: SFT would teach an answer that no reward pays.
            written = example.solution_as_written or example.solution
            if parse_choice(written, choices) != example.solution:
                raise ValueError(f"its answer {_short(written)} also names another of the choices {list(choices)}")
            return example
        except ValueError as error:
            raise ValueError(f"{example_id}: {_reason(error, example_id)}") from error

    def _order(self, num_choices: int, example_id: str) -> list[int]:
        """The table's positions of the choices, in the order in which they are offered."""
        order = list(range(num_choices))
        if self._shuffle_seed is not None:
            # Not random.shuffle, whose steps are Python's own affair: the order must outlive versions.
            order.sort(key=lambda position: _hash(f"{self._shuffle_seed}/{example_id}/{position}"))
        shift = self._num_steps % num_choices
        return order[-shift:] + order[:-shift]


def text(row: Mapping[str, Any], column: str) -> str:
    """A column's text. Raises ValueError if it holds none."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is {_short(value)}, expected text")
    return value


def texts(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """A column's list of texts. Raises ValueError if it holds none."""
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{column} is {_short(value)}, expected a list of texts")
    return tuple(value)


def position_of_words(words: str, choices: Sequence[str]) -> int:
    """Where a choice stands that is given by its words; capitals and outer blanks do not matter.

    Raises:
        ValueError: it is none of the choices.
    """
    folded = [choice.strip().casefold() for choice in choices]
    try:
        return folded.index(words.strip().casefold())
    except ValueError:
        raise ValueError(f"the answer {_short(words)} is none of the choices {_short(list(choices))}") from None


def position_of_letter(letter: str, choices: Sequence[str]) -> int:
    """Where a choice stands that is given by its letter, as "B" or "(B)".

    Raises:
        ValueError: it is no choice's letter.
    """
    bare = letter.strip().removeprefix("(").removesuffix(")")
    position = _LETTERS.find(bare.upper()) if len(bare) == 1 else -1
    if not 0 <= position < len(choices):
        raise ValueError(f"the answer {_short(letter)} is none of the {len(choices)} choices' letters")
    return position


def with_choices(prompt: str, listed: Sequence[str], offered: Sequence[str]) -> str:
    """A prompt that ends in its choices, one "(A) ..." a line, with the choices in another order.

    Args:
        prompt: The question and its choices.
        listed: The choices as the prompt lists them.
        offered: The same choices in the order wanted; in the same order, the prompt comes back byte for byte.

    Raises:
        ValueError: the order is another and the prompt does not end so.
    """
    if list(offered) == list(listed):
        return prompt
    ending = _lines(listed)
    if not prompt.endswith(ending):
        raise ValueError(f"its choices cannot change places: the prompt does not end in {_short(ending)}")
    return prompt.removesuffix(ending) + _lines(offered)


def _lines(choices: Sequence[str]) -> str:
    return "".join(f"\n({letter}) {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _reason(error: ValueError, example_id: str) -> str:
    return " ".join(str(error).split()).removeprefix(f"{example_id}: ")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:120]}..."
