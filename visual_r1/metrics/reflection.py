"""Reflection: how often does the policy doubt its own reasoning, the "aha moment" of the papers?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from visual_r1.examples import Rollout
from visual_r1.metrics.measure import means
from visual_r1.parsing import is_correct


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """Counts the phrases of one keyword list in completions.

    A longer completion holds more of any word by chance, so the share of rollouts alone cannot show an aha moment; the
    rate per token can. Plot the two together, from step 0 (arXiv 2503.20783: base models reflect before any training).

    A phrase matches whole words in either case, any blanks between its words. A ``*`` lifts the word boundary on its
    side: ``possibl*`` is a prefix, ``*wait*`` a substring as most papers count it.

    For the rate per token the text is read from left to right and no part of it counts twice: of phrases that start at
    the same place the longest counts, so "double-check" is not also a "check". A phrase's own curve knows nothing of
    the other phrases: "let me check again" is a "let me check" and a "check again".

    Returns:
        ``reflection/any_rate``: share of rollouts with at least one phrase, in [0, 1].
        ``reflection/any_rate_correct``, ``reflection/any_rate_incorrect``: the same among right and wrong rollouts.
        ``reflection/per_1k_tokens``: phrases per 1,000 completion tokens, over all rollouts together.
        ``reflection/keyword/<word>``: share of rollouts that hold this phrase, within longer phrases too; stars
            left out, blanks as underscores.

    Raises:
        ValueError: there is no phrase, a phrase has no word, two phrases have one name, or a star is inside a phrase.
    """

    phrases: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.phrases, str) or not self.phrases:
            raise ValueError(f"phrases is {self.phrases!r}, expected a list of at least one phrase")
        # A config hands over a list of its own type.
        object.__setattr__(self, "phrases", tuple(self.phrases))
        for phrase, word in zip(self.phrases, self._words, strict=True):
            if not any(character.isalnum() for character in word) or "*" in word:
                raise ValueError(f"phrase {phrase!r}: expected words, with at most one * at either end")
        if len(set(self._words)) < len(self._words):
            raise ValueError(f"two phrases have one name: {list(self.phrases)}")

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        found = [self.find(rollout.completion) for rollout in rollouts]
        correct = [is_correct(rollout) for rollout in rollouts]
        samples = {
            "reflection/any_rate": [bool(words) for words in found],
            "reflection/any_rate_correct": [bool(words) for words, right in zip(found, correct, strict=True) if right],
            "reflection/any_rate_incorrect": [
                bool(words) for words, right in zip(found, correct, strict=True) if not right
            ],
        }
        for word, pattern in self._pattern_of_word.items():
            samples[f"reflection/keyword/{word.replace(' ', '_')}"] = [
                bool(re.search(pattern, rollout.completion, re.IGNORECASE)) for rollout in rollouts
            ]
        values = means(samples)
        if num_tokens := sum(rollout.num_tokens for rollout in rollouts):
            values["reflection/per_1k_tokens"] = 1000 * sum(map(len, found)) / num_tokens
        return values

    def find(self, text: str) -> tuple[str, ...]:
        """The phrases in a text, in order and as often as they occur, in lower case without their stars."""
        words = tuple(self._pattern_of_word)
        return tuple(words[match.lastindex - 1] for match in self._pattern.finditer(text) if match.lastindex)

    def spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Where `find` finds them: start and end of each phrase, in characters."""
        return tuple(match.span() for match in self._pattern.finditer(text))

    def place(self, text: str) -> int | None:
        """The first character of a text's first phrase; None when there is none."""
        match = self._pattern.search(text)
        return match.start() if match else None

    @cached_property
    def _words(self) -> tuple[str, ...]:
        return tuple(
            " ".join(phrase.strip().removeprefix("*").removesuffix("*").lower().split()) for phrase in self.phrases
        )

    @cached_property
    def _pattern_of_word(self) -> dict[str, str]:
        """Longest word first: of alternatives at one place, `re` takes the first."""
        patterns = {}
        for word, phrase in sorted(zip(self._words, self.phrases, strict=True), key=lambda pair: -len(pair[0])):
            before = "" if phrase.strip().startswith("*") else r"(?<!\w)"
            after = "" if phrase.strip().endswith("*") else r"(?!\w)"
            patterns[word] = before + r"\s+".join(map(re.escape, word.split())) + after
        return patterns

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"({pattern})" for pattern in self._pattern_of_word.values()), re.IGNORECASE)
