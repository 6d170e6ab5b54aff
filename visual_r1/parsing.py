"""Reads a completion. Returns None for what is not there; never raises, never guesses.

Rewards, metrics and evaluation all read here, so that no method is scored by a rule of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

_LETTER = re.compile(r"\(([a-z])\)|([a-z])", re.IGNORECASE)
_LETTER_AND_WORDS = re.compile(r"\(([a-z])\)\s*(\S.*)", re.IGNORECASE | re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def parse_thought(text: str) -> str | None:
    """What stands between the first ``<think>`` and the ``</think>`` that follows; None when either is missing."""
    _, opened, rest = text.partition("<think>")
    thought, closed, _ = rest.partition("</think>")
    return thought.strip() if opened and closed else None


def parse_answer(text: str) -> str | None:
    """The content of the one ``<answer>`` pair; None unless there is exactly one opening and one closing tag."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    answer, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return answer.strip() if closed else None


def parse_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the one choice that an answer names; None when it names none, or more than one.

    A choice is named by its letter ("B", "(b)"), by its own words, or by both when they agree ("(B) chair"). Case, outer
    blanks and one final full stop do not matter. Anything else names nothing: no article "a", no search in a sentence.
    """
    letters = ascii_uppercase[: len(choices)]
    texts = [_normal(choice) for choice in choices]
    answer = answer.strip()
    plain = answer.removesuffix(".").strip()
    named = {letter for letter, text in zip(letters, texts, strict=True) if text in (_normal(answer), answer.casefold())}
    if match := _LETTER.fullmatch(plain):
        named |= {(match[1] or match[2]).upper()} & set(letters)
    elif match := _LETTER_AND_WORDS.fullmatch(answer):
        letter = match[1].upper()
        if letter in letters and texts[letters.index(letter)] == _normal(match[2]):
            named.add(letter)
    return named.pop() if len(named) == 1 else None


def is_well_formed(text: str) -> bool:
    """Whether a text is exactly ``<think>thought</think> <answer>answer</answer>``.

    Each tag occurs once, in this order, with nothing but blanks outside; thought and answer hold at least one letter or
    digit. Stricter than the paper's ``<think>.*?</think>\\s*<answer>.*?</answer>``, which an empty thought, a nested tag
    or a second answer also satisfy.
    """
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    before, _, rest = text.partition("<think>")
    thought, closed_think, rest = rest.partition("</think>")
    between, opened_answer, rest = rest.partition("<answer>")
    answer, closed_answer, after = rest.partition("</answer>")
    if not (closed_think and opened_answer and closed_answer) or (before + between + after).strip():
        return False
    return not is_empty(thought) and not is_empty(answer)


def is_empty(text: str) -> bool:
    """Whether a text holds no letter and no digit: blanks and punctuation are no thought."""
    return not any(character.isalnum() for character in text)


def _normal(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()
