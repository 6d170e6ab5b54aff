"""Strict: one answer in its tags that names one choice. Our headline, and the rule of every reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visual_r1.examples import Example, Rollout
from visual_r1.parsing import is_correct, named_letter
from visual_r1.scoring.scorer import Part, plain_mean


@dataclass(frozen=True)
class Strict:
    """Right when the one ``<answer>`` names the solution and nothing else (`parsing.is_correct`); a plain mean."""

    def __call__(self, rollout: Rollout) -> bool:
        return is_correct(rollout)

    def is_read(self, rollout: Rollout) -> bool:
        """Whether the one answer names a choice."""
        return named_letter(rollout) is not None

    def parts(self, examples: Sequence[Example]) -> tuple[Part, ...]:
        return plain_mean(examples)

    def problem(self, examples: Sequence[Example]) -> str | None:
        return None

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        return {}
