"""What tests of training methods share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from visual_r1.models import ModelSource, Policy
from visual_r1.rollout.engine import Completion
from visual_r1.rollout.transformers import TransformersEngine, TransformersSampler


@dataclass
class ListeningEngine:
    """The real engine; it keeps what is sampled in groups, which the probe does not do."""

    engine: TransformersEngine = field(default_factory=lambda: TransformersEngine(batch_size=64))
    groups: list[list[list[Completion]]] = field(default_factory=list)
    """By call, then by prompt."""

    @property
    def batch_size(self) -> int:
        return self.engine.batch_size

    @property
    def needs_correction(self) -> bool:
        return self.engine.needs_correction

    @property
    def warn_logp_difference(self) -> float | None:
        return self.engine.warn_logp_difference

    def check(self, source: ModelSource) -> None:
        self.engine.check(source)

    @contextmanager
    def serving(self, policy: Policy) -> Generator[ListeningSampler]:
        with self.engine.serving(policy) as sampler:
            yield ListeningSampler(sampler, self.groups)


@dataclass(frozen=True)
class ListeningSampler:
    sampler: TransformersSampler
    groups: list[list[list[Completion]]]

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        groups = self.sampler.generate(*args, **kwargs)
        if kwargs["num_generations"] > 1:
            self.groups.append(groups)
        return groups


@pytest.fixture
def listening_engine() -> ListeningEngine:
    """An engine that remembers."""
    return ListeningEngine()
