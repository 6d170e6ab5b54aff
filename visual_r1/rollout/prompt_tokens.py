"""A prompt's tokens as the trainer has them, without touching a pixel: what every other engine is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visual_r1.models import Policy
from visual_r1.rollout.engine import Conversation, EngineError, Sampling
from visual_r1.rollout.transformers import encode_prompts


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """One prompt, before and after its images have taken their places."""

    collapsed: tuple[int, ...]
    """One placeholder an image. An engine that puts images in by itself is given these: it would put them in twice."""
    expanded: tuple[int, ...]
    """As many placeholders as an image has tokens: the trainer's ids."""
    images: tuple[Any, ...]


def prompt_tokens(policy: Policy, conversation: Conversation) -> PromptTokens:
    """The tokens of a conversation whose images are fitted to the policy's limits."""
    text = policy.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    images = [part["image"] for message in conversation for part in message["content"] if part["type"] == "image"]
    collapsed = policy.tokenizer(text)["input_ids"]
    placeholder = policy.model.config.image_token_id
    lengths = iter([policy.limits.num_tokens(*image.size) for image in images])
    expanded: list[int] = []
    for token in collapsed:
        expanded += [token] * (next(lengths, 1) if token == placeholder else 1)
    return PromptTokens(collapsed=tuple(collapsed), expanded=tuple(expanded), images=tuple(images))


def check_seen(seen: Sequence[int], expected: Sequence[int], *, engine: str) -> None:
    """Holds an engine to the prompt that the trainer has: rollouts of another one would teach something else.

    Raises:
        EngineError: another number of tokens, or other tokens, with both named.
    """
    if len(seen) != len(expected):
        raise EngineError(
            f"{engine} saw a prompt of {len(seen)} tokens, the trainer has {len(expected)}: images are taken in "
            "another way; the engine's model folder and version must be those of the run"
        )
    if tuple(seen) != tuple(expected):
        where = next(number for number, (one, other) in enumerate(zip(seen, expected, strict=True)) if one != other)
        raise EngineError(
            f"{engine} saw token {seen[where]} at place {where} of a prompt, the trainer has {expected[where]}; the "
            "engine's tokenizer and chat template must be those of the run"
        )


def compare_with_processor(
    policy: Policy, conversations: Sequence[Conversation], expected: Sequence[Sequence[int]]
) -> None:
    """Holds the cheap count of a prompt's tokens to the processor itself, which the trainer uses.

    Raises:
        EngineError: they differ.
    """
    encoded = encode_prompts(policy, conversations)
    for ids, mask, tokens in zip(encoded["input_ids"], encoded["attention_mask"], expected, strict=True):
        check_seen(tokens, ids[mask.bool()].tolist(), engine="the engine")


def check_lengths(lengths: Sequence[int], *, sampling: Sampling, limit: int) -> None:
    """Refuses prompts that leave the completion too little room.

    Raises:
        EngineError: with the setting to raise.
    """
    if (longest := max(lengths)) + sampling.max_completion_length > limit:
        raise EngineError(
            f"rollout.engine.max_model_length={limit}: a prompt of {longest} tokens and a completion of up to "
            f"{sampling.max_completion_length} exceed it; raise it, or lower model.max_pixels"
        )
