"""Reads a completion. Returns None for what is not there; never raises, never guesses.

Rewards, metrics and evaluation all read here, so that no method is scored by a rule of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from visual_r1.examples import Rollout

# Both cases spelled out: under re.IGNORECASE, [a-z] also matches "\u017f" (long s) and "\u212a" (the Kelvin sign).
_LETTER = re.compile(r"\(([a-zA-Z])\)|([a-zA-Z])")
_LETTER_AND_WORDS = re.compile(r"\(([a-zA-Z])\)\s*(\S.*)", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def parse_thought(text: str) -> str | None:
    """What stands between the first ``<think>`` and the ``</think>`` that follows; None when either is missing."""
    _, opened, rest = text.partition("<think>")
    thought, closed, _ = rest.partition("</think>")
    return thought.strip() if opened and closed else None


def parse_answer(text: str) -> str | None:
    """The content of the one ``<answer>`` pair; None unless there is exactly one opening and one closing tag.

    None also when the pair opens inside the closed thought: what is thought is not answered. Give the whole text
    (``Rollout.text``), or the thought that the prompt opened cannot be seen.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    if "<answer>" in (parse_thought(text) or ""):
        return None
    answer, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return answer.strip() if closed else None


def parse_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the one choice that an answer names; None when it names none, or more than one.

    A choice is named by its letter ("B", "(b)"), by its own words, or by both when they agree ("(B) chair"). Case,
    outer blanks and one final full stop do not matter. Anything else names nothing: no article "a", no search in a
    sentence.
    """
    letters = ascii_uppercase[: len(choices)]
    texts = [_normal(choice) for choice in choices]
    answer = answer.strip()
    plain = answer.removesuffix(".").strip()
    # An empty answer names nothing, not even a choice that is only a full stop.
    spellings = {_normal(answer), answer.casefold()} - {""}
    named = {letter for letter, text in zip(letters, texts, strict=True) if text in spellings}
    if match := _LETTER.fullmatch(plain):
        named |= {(match[1] or match[2]).upper()} & set(letters)
    elif match := _LETTER_AND_WORDS.fullmatch(answer):
        letter = match[1].upper()
        if letter in letters and texts[letters.index(letter)] == _normal(match[2]):
            named.add(letter)
    return named.pop() if len(named) == 1 else None


def named_letter(rollout: Rollout) -> str | None:
    """The letter that a rollout's one answer names; None without such an answer or without such a name."""
    answer = parse_answer(rollout.text)
    return None if answer is None else parse_choice(answer, rollout.example.choices)


def is_correct(rollout: Rollout) -> bool:
    """Whether a rollout's one answer names the solution: the strict rule of every reward, metric and evaluation."""
    return named_letter(rollout) == rollout.example.solution


def is_well_formed(text: str) -> bool:
    r"""Whether a text is exactly ``<think>thought</think> <answer>answer</answer>``.

    Each tag occurs once, in this order, with nothing but blanks outside; thought and answer hold at least one letter or
    digit. Stricter than the paper's ``<think>.*?</think>\s*<answer>.*?</answer>``, which an empty thought, a nested
    tag or a second answer also satisfy.
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
