"""What every rollout engine takes and returns. Training, the probe and evaluation all sample through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from visual_r1.examples import Example, Rollout

if TYPE_CHECKING:
    from visual_r1.models import ModelSource, Policy

Conversation = list[dict[str, Any]]
"""One prompt as messages, images inside, as `PromptStyle.messages` makes it."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Raises:
        ValueError: a value out of its range.
    """

    max_completion_length: int
    """Tokens; a completion that reaches it without an end token is truncated."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens may be drawn; 0 allows all."""
    top_p: float = 1.0
    """Only the most likely tokens that together hold this much probability may be drawn."""

    def __post_init__(self) -> None:
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length={self.max_completion_length}: expected at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: expected 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a value in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The tokens that a policy added to one prompt."""

    prompt_ids: tuple[int, ...]
    """The prompt as the engine saw it, image placeholders expanded, without padding and without a prefix."""
    token_ids: tuple[int, ...]
    """What was drawn, the end token included; a prefix that was given is not among it."""
    logps: tuple[float, ...]
    """Each token's log-probability under the policy at the sampling temperature, before top-k and top-p cut it."""
    is_truncated: bool
    """The length limit came before an end token."""


class EngineError(OSError):
    """An engine has died, cannot be reached, or sees another prompt than the trainer: one line, with the fix."""


class Sampler(Protocol):
    """An engine that holds a policy's weights."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """One list of `num_generations` completions for each conversation, in order.

        With `prefixes`, one for each conversation, a completion goes on from tokens that are written already: they
        stand after the prompt's as they are given, and no text is tokenised again. Only an engine whose
        `takes_prefixes` is true takes them.

        The same weights, conversations, sampling and seed give the same completions; no global random state is read or
        changed, so that a probe in the middle of training does not alter the training.
        """
        ...


class RolloutEngine(Protocol):
    """Samples completions from policies."""

    @property
    def batch_size(self) -> int:
        """Completions that are sampled at once."""
        ...

    @property
    def needs_correction(self) -> bool:
        """Whether it computes otherwise than the trainer, so that GRPO weighs its tokens by importance sampling."""
        ...

    @property
    def warn_logp_difference(self) -> float | None:
        """The mean difference of its log-probabilities to the trainer's above which training warns; None: never."""
        ...

    @property
    def takes_prefixes(self) -> bool:
        """Whether its samplers go on from a completion that is partly written."""
        ...

    def check(self, source: ModelSource) -> None:
        """Refuses, before a weight is loaded, what would fail at the first rollout.

        Raises:
            ValueError: something that the engine needs is missing, or does not fit this model.
        """
        ...

    def serving(self, policy: Policy) -> AbstractContextManager[Sampler]:
        """Gives the engine the policy's weights as they are now; they must not change while the block runs.

        Of several processes all enter the block together and leave it together: where the weights are split among
        them, they are brought together here. Within it, each may generate as often as it likes.

        Raises:
            EngineError: the engine cannot start, has died or cannot be reached; so may `Sampler.generate`.
        """
        ...


def check_context(policy: Policy, examples: Iterable[Example], *, max_completion_length: int) -> None:
    """Refuses prompts that leave the completion too little room; cut, a prompt could lose its image or its question.

    Raises:
        ValueError: with the first such example's id.
    """
    for example in examples:
        if (length := policy.prompt_length(example)) + max_completion_length > policy.context_length:
            raise ValueError(
                f"{example.id}: a prompt of {length} tokens and a completion of up to {max_completion_length} exceed "
                f"the model's context of {policy.context_length}; lower model.max_pixels or the completion length, or "
                "leave the example out"
            )


def to_rollout(policy: Policy, example: Example, token_ids: Sequence[int], *, is_truncated: bool) -> Rollout:
    """Reads a completion's tokens as text, end token removed."""
    tokenizer = policy.tokenizer
    ends = set(policy.end_token_ids)
    body = [token for token in token_ids if token not in ends]
    pieces = tokenizer.batch_decode([[token] for token in body], skip_special_tokens=True)
    return Rollout(
        example=example,
        completion=tokenizer.decode(body, skip_special_tokens=True),
        num_tokens=len(token_ids),
        is_truncated=is_truncated,
        prompt_opens_think=policy.style.opens_think,
        num_thought_tokens=_tokens_before("</think>", pieces),
    )


def sample(
    engine: RolloutEngine,
    policy: Policy,
    examples: Sequence[Example],
    *,
    sampling: Sampling,
    seed: int,
    num_generations: int = 1,
    batches: slice = slice(None),
) -> Iterator[list[Rollout]]:
    """The rollouts of each example; images are decoded one engine batch at a time, and each batch has its own seed.

    Args:
        engine: what samples.
        policy: who is asked.
        examples: what is asked.
        sampling: how tokens are drawn.
        seed: of all batches together.
        num_generations: rollouts of each example.
        batches: the engine batches to sample, all if not given; a batch's rollouts are the same with the others or
            without.

    Raises:
        ValueError: an image or a prompt does not fit the model, with the example's id.
    """
    prompts_per_batch = max(1, engine.batch_size // num_generations)
    with engine.serving(policy) as sampler:
        for start in range(0, len(examples), prompts_per_batch)[batches]:
            stop = min(start + prompts_per_batch, len(examples))
            batch = [policy.fitted(examples[index]) for index in range(start, stop)]
            check_context(policy, batch, max_completion_length=sampling.max_completion_length)
            conversations = [policy.style.messages(example) for example in batch]
            groups = sampler.generate(
                conversations, num_generations=num_generations, sampling=sampling, seed=seed + start
            )
            for example, completions in zip(batch, groups, strict=True):
                yield [
                    to_rollout(policy, example, completion.token_ids, is_truncated=completion.is_truncated)
                    for completion in completions
                ]


def _tokens_before(tag: str, pieces: Sequence[str]) -> int | None:
    """How many tokens end before the tag begins; a token that holds the tag's first character is not counted."""
    start = "".join(pieces).find(tag)
    if start < 0:
        return None
    num_tokens, position = 0, 0
    for piece in pieces:
        position += len(piece)
        if position > start:
            break
        num_tokens += 1
    return num_tokens
