"""One batch of rollouts learned from under a clock: rollouts are given, so that what is compared learns from the same.

It drives any trainer of trl's kind by the methods that trl's own loop calls, without the optimizer's step, which is the
same for all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from visual_r1.models import ModelSource, Policy
from visual_r1.rollout.engine import Completion, Conversation, Sampling
from visual_r1.rollout.transformers import encode_prompts

_LOGP = -5.0
"""Of every given token under the engine that is said to have drawn it."""


@dataclass(frozen=True, kw_only=True)
class GivenRollouts:
    """A rollout engine that samples nothing: completions of the lengths it is told, of ordinary tokens at random."""

    lengths: tuple[int, ...]
    """Tokens of the completions in the order of the batch; after the last the first again."""
    num_tokens: int = 600
    """Completions are drawn from the first so many tokens of the vocabulary, which should be plain text."""
    needs_correction: bool = False
    warn_logp_difference: float | None = None

    @property
    def batch_size(self) -> int:
        """Completions at once: all."""
        return len(self.lengths)

    @property
    def takes_prefixes(self) -> bool:
        """No: what it gives goes on from nothing."""
        return False

    def check(self, source: ModelSource) -> None:
        """Fits every model."""

    @contextmanager
    def serving(self, policy: Policy) -> Generator[GivenSampler]:
        """Looks at no weight."""
        yield GivenSampler(self, policy)


@dataclass(frozen=True)
class GivenSampler:
    """What `GivenRollouts` serves."""

    engine: GivenRollouts
    policy: Policy

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """The same completions for the same lengths, whatever the seed; without prefixes."""
        draw = random.Random(0)
        lengths = self.engine.lengths
        ends = set(self.policy.end_token_ids)
        plain = [token for token in range(self.engine.num_tokens) if token not in ends]
        groups: list[list[Completion]] = []
        for conversation in conversations:
            prompt_ids = tuple(encode_prompts(self.policy, [conversation])["input_ids"][0].tolist())
            group = []
            for _ in range(num_generations):
                length = lengths[(len(groups) * num_generations + len(group)) % len(lengths)]
                token_ids = tuple(draw.choices(plain, k=length))
                logps = (_LOGP,) * length
                group.append(Completion(prompt_ids=prompt_ids, token_ids=token_ids, logps=logps, is_truncated=True))
            groups.append(group)
        return groups


@dataclass(frozen=True, kw_only=True)
class Made:
    """What it took to make a batch out of rollouts."""

    seconds: float
    """Images prepared, rewards, advantages, and the passes without a gradient."""
    pass_seconds: float
    """Of these, passes without a gradient: of the reference policy and of the old one, where the loss needs them."""


def make_batch(trainer: Any) -> Made:
    """Makes the micro-batches of one generation, which the trainer keeps."""
    rows = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    trainer._step, trainer._buffered_inputs = 0, None
    score = trainer._get_per_token_logps_and_entropies
    pass_seconds = 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal pass_seconds
        started = _now()
        result = score(*args, **kwargs)
        pass_seconds += _now() - started
        return result

    trainer._get_per_token_logps_and_entropies = timed
    started = _now()
    try:
        trainer._prepare_inputs(rows)
    finally:
        del trainer._get_per_token_logps_and_entropies  # the class's own again
    return Made(seconds=_now() - started, pass_seconds=pass_seconds)


def update(trainer: Any, *, micro_batches: int | None = None) -> float:
    """Seconds of the forward and backward passes over the batch that `make_batch` made, gradients left in place.

    They are those of the first update on new rollouts, with the curves that it has.

    Args:
        trainer: after `make_batch`.
        micro_batches: only so many of them; None: all.
    """
    count = trainer.args.steps_per_generation
    # trl would make a new batch at the first micro-batch, so that no update could be repeated.
    trainer._prepare_inputs = lambda _rows: trainer._buffered_inputs[trainer._step % count]
    trainer._step = 0
    trainer.model.zero_grad(set_to_none=True)
    started = _now()
    try:
        for _ in range(count if micro_batches is None else micro_batches):
            trainer.training_step(trainer.model, [], None)
        return _now() - started
    finally:
        del trainer._prepare_inputs  # the class's own again


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
