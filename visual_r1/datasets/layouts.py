"""How others lay out tables of visual questions, and how their cells become a question, its choices and a solution.

Read in their code:

- **TRL** 1.16 (``trl/trainer/grpo_trainer.py``): ``prompt``, and ``images``, a list, or ``image``, one. Other columns
  go to the rewards by their names, ``solution`` in its ``examples/scripts/grpo_vlm.py``. With images a prompt is a
  conversation; ``prepare_multimodal_messages`` puts them before a content that is a plain text, into the
  ``{"type": "image"}`` parts of one that is a list, and refuses another number of such parts.
- **R1-V** (``src/r1-v/src/open_r1/grpo.py``): ``image``, ``problem``, ``solution``. What stands inside the solution's
  answer tags counts, or all of it where there are none. Its data, leonardPKU/clevr_cogen_a_train: ``How many items are
  there in the image?``, ``<answer> 3 </answer>``.
- **EasyR1** (``verl/utils/dataset.py``, names in ``examples/config.yaml``): ``images``, ``problem``, ``answer``. The
  problem holds a literal ``<image>`` for each image, where its text is split. Its data: hiyouga/geometry3k.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from visual_r1.parsing import parse_answer

PLACEHOLDER = "<image>"
"""What stands for an image in a text."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names that a table may use for each field; none for a field that the layout does not know."""

    images: tuple[str, ...]
    question: tuple[str, ...]
    solution: tuple[str, ...]
    choices: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    thought: tuple[str, ...] = ()
    """No layout has it by itself: a column is trained on when its name is given."""


LAYOUTS = {
    "columns": Layout(
        images=("images", "image"),
        question=("question",),
        solution=("solution",),
        choices=("choices",),
        category=("category",),
        id=("id",),
    ),
    "trl": Layout(images=("images", "image"), question=("prompt",), solution=("solution", "answer")),
    "r1_v": Layout(images=("image",), question=("problem",), solution=("solution",)),
    "easyr1": Layout(images=("images",), question=("problem",), solution=("answer",)),
}

_LINE = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_MARK = re.compile(r"\(([A-Z])\)")
_SENTENCE_END = re.compile(r"[.?!]\s+\S")


def question_text(cell: Any) -> str:
    """The question in a cell: a text, or a conversation of one user message, its image parts as `PLACEHOLDER`.

    A system message is left out: how a model is asked is the prompt style's part.

    Raises:
        ValueError: neither of the two, or a conversation of several turns.
    """
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, Sequence) or not all(isinstance(message, Mapping) for message in cell):
        raise ValueError(f"the question is neither a text nor a list of messages: {short(cell)}")
    roles = [message.get("role") for message in cell]
    if [role for role in roles if role != "system"] != ["user"]:
        raise ValueError(f"the conversation's roles are {roles}: expected one user message, a system message beside it")
    content = cell[roles.index("user")].get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"the message's content is neither a text nor a list of parts: {short(content)}")
    return "".join(_part_text(part) for part in content)


def _part_text(part: Mapping[str, Any]) -> str:
    if part.get("type") == "image":
        return PLACEHOLDER
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(f"a part of the message is neither an image nor a text: {short(dict(part))}")


def without_placeholders(text: str, num_images: int) -> str:
    """The text without its `PLACEHOLDER`s, which to a model would be words; a text that has none stays as it is.

    Prompts put all images first, in their order. So a placeholder may go from the start or the end of a line, but not
    from within a sentence, where it would leave a gap.

    Raises:
        ValueError: not one placeholder for each image, or one with words on both sides.
    """
    num_placeholders = text.count(PLACEHOLDER)
    if not num_placeholders:
        return text
    if num_placeholders != num_images:
        raise ValueError(f"{num_placeholders} {PLACEHOLDER} placeholders in the question for {num_images} images")
    lines = []
    for line in text.split("\n"):
        pieces = line.split(PLACEHOLDER)
        has_words = [any(character.isalnum() for character in piece) for piece in pieces]
        if any(any(has_words[:seam]) and any(has_words[seam:]) for seam in range(1, len(pieces))):
            raise ValueError(
                f"an {PLACEHOLDER} placeholder stands within the sentence {short(line)}, but prompts put images "
                "first: call it the first image, the second image there"
            )
        if len(pieces) == 1 or any(piece.strip() for piece in pieces):
            lines.append(line if len(pieces) == 1 else "".join(piece.strip() for piece in pieces))
    return "\n".join(lines).strip()


def listed_choices(question: str) -> tuple[str, ...] | None:
    """The choices that a question lists as "(A) ... (B) ..."; None where there is no such list.

    Capital letters in brackets, from A on, each once. Each choice on its own line, or several on a line: there a comma,
    a semicolon, "or" and "and" before the next letter, and the full stop or question mark after the last choice, belong
    to no choice.

    Raises:
        ValueError: there is a list, but a sentence follows its last choice on the same line.
    """
    lines = _LINE.findall(question)
    if _are_letters([letter for letter, _ in lines]) and not any(_MARK.search(text) for _, text in lines):
        return tuple(text for _, text in lines)
    marks = list(_MARK.finditer(question))
    if not _are_letters([mark[1] for mark in marks]):
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end].partition("\n")[0].strip() for mark, end in zip(marks, ends, strict=True)]
    if _SENTENCE_END.search(texts[-1]):
        raise ValueError(
            f"cannot tell where choice ({marks[-1][1]}) ends in {short(texts[-1])}: "
            "put each choice on a line of its own"
        )
    between = [re.sub(r"[,;]?(\s+(or|and))?$", "", text).rstrip(" ,;") for text in texts[:-1]]
    choices = (*between, texts[-1].rstrip(".?! "))
    return choices if all(choices) else None


def offer(question: str, listed: Sequence[str], offered: Sequence[str]) -> str:
    """The question with the choices offered: where it lists them, or as CV-Bench does below one that lists none.

    Args:
        question: The question, with or without a list "(A) ... (B) ...".
        listed: The choices in the order in which such a list has them.
        offered: The same choices in the order wanted; in the same order, a question that lists them stays as it is.

    Raises:
        ValueError: the question lists other choices, or some of these, or one twice.
    """
    pieces, start, wrong = [], 0, []
    for letter, old, new in zip(ascii_uppercase, listed, offered, strict=False):
        # "(A) 1" does not stand in "(A) 10", nor in "(A) 1.5".
        found = list(re.finditer(rf"\({letter}\)[ \t]*{re.escape(old)}(?!\w|\.\d)", question))
        if len(found) == 1 and found[0].start() >= start:
            pieces += [question[start : found[0].end() - len(old)], new]
            start = found[0].end()
        else:
            wrong.append((len(found), f"({letter}) {old}"))
    if not wrong:
        return "".join([*pieces, question[start:]])
    if pieces or any(times for times, _ in wrong) or listed_choices(question) is not None:
        raise ValueError(f"{wrong[0][1]!r} is not listed once and in its place in the question, which lists choices")
    entries = [f"({letter}) {choice}" for letter, choice in zip(ascii_uppercase, offered, strict=False)]
    return "\n".join([f"{question.rstrip()} Select from the following choices.", *entries])


def plain_text(cell: Any) -> str:
    """A text, a number or a truth value as a text without outer blanks; 3.0 as "3": a column with gaps holds floats.

    Raises:
        ValueError: something else, or nothing.
    """
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, str | int | float) or cell != cell:
        raise ValueError(f"expected a text or a number, got {short(cell)}")
    return str(cell).strip()


def solution_text(cell: Any) -> str:
    """The solution in a cell: what its answer tags hold, or all of it without tags.

    Raises:
        ValueError: it is empty, or its tags hold no one answer.
    """
    text = plain_text(cell)
    answer = parse_answer(text) if "<answer>" in text else text
    if not answer:
        raise ValueError(f"the solution holds no answer: {short(text)}")
    return answer


def _are_letters(letters: Sequence[str]) -> bool:
    return len(letters) >= 2 and "".join(letters) == ascii_uppercase[: len(letters)]


def short(value: Any) -> str:
    """A value in a message, cut off where it would fill the line."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
