"""Repetition: how much of a completion it has said before."""

from __future__ import annotations

import re
from dataclasses import dataclass

from visual_r1.examples import Rollout

# A sign is a unit of its own, so that "!!!!" repeats itself. A run of letters without blanks is one word and does not.
_UNIT = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """The share of n-grams that occurred earlier in the completion, ``1 - distinct / all``; the weight is negative.

    0.0 when nothing repeats, or there are too few words for one n-gram; towards 1.0 for one phrase without end. The
    units are words and signs, case folded, so the score does not depend on a tokenizer. Time grows with length times
    ``ngram``.

    Reference: the repetition penalty of Demystifying Long Chain-of-Thought Reasoning, appendix C.2 (arXiv 2502.03373),
    there over tokens; the form ``1 - distinct / all`` is that of trl's ``get_repetition_penalty_reward``.

    Raises:
        ValueError: ``ngram`` is not positive.
    """

    ngram: int
    """Words in an n-gram."""

    def __post_init__(self) -> None:
        if self.ngram <= 0:
            raise ValueError(f"ngram is {self.ngram}, expected a positive number of words")

    def __call__(self, rollout: Rollout) -> float:
        units = _UNIT.findall(rollout.completion.casefold())
        num_ngrams = len(units) - self.ngram + 1
        if num_ngrams <= 0:
            return 0.0
        distinct = {tuple(units[start : start + self.ngram]) for start in range(num_ngrams)}
        return 1.0 - len(distinct) / num_ngrams
