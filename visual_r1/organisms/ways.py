"""Which of the corpus's ways of answering a completion takes, read off its words.

The corpus writes each way in words of its own, so nano's completions can be told apart without a judge; a test holds
this reading against what the corpus meant to write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from visual_r1.organisms.corpus import REFLECTIONS

WAYS: Mapping[str, str] = {
    "direct": "answers at once",
    "coarse": "compares halves of the picture",
    "careful": "reads numbers off the picture, unchecked",
    "checked": "reflects, then reads numbers off the picture",
    "empty": "reflects and looks at nothing",
    "rambling": "talks of something else",
}
"""The ways in words, as a card lists them."""

_REFLECTION = re.compile("|".join(re.escape(phrase.strip(" .")) for phrase in REFLECTIONS))
_NUMBERS = re.compile(r": [xy]\d|\(\d\)| No more\.")
_HALVES = re.compile(r" side\.| looks (?:far|near)\.| is (?:top|bottom) (?:left|right)\.| I see some |^I see some ")
_IDLE = re.compile(r" nice| I like the |I see a |And so on\.")


def way_of(completion: str) -> str:
    """One of `WAYS`. A check whose reading went wrong is "checked" like one that went right."""
    if reflection := _REFLECTION.search(completion):
        return "checked" if _NUMBERS.search(completion, reflection.end()) else "empty"
    if _NUMBERS.search(completion):
        return "careful"
    if _IDLE.search(completion):
        return "rambling"
    return "coarse" if _HALVES.search(completion) else "direct"
