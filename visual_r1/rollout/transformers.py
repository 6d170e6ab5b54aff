"""Rollouts by the policy's own forward: no second engine, no second copy of the weights.

A prompt and its images are encoded once for its whole group; then the cache is repeated, and a completion that has
ended leaves the batch. Shapes: B prompts, G completions each, P prompt tokens after padding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from visual_r1.models import ModelSource, Policy, device_of
from visual_r1.rollout.decoding import begin
from visual_r1.rollout.engine import Completion, Conversation, Sampling
from visual_r1.rollout.gathering import whole


@dataclass(frozen=True, kw_only=True)
class TransformersEngine:
    """Samples with Hugging Face transformers.

    Raises:
        ValueError: `batch_size` is not positive.
    """

    batch_size: int
    """Completions sampled at once; memory grows with it."""
    warn_logp_difference: float | None = None
    """See `RolloutEngine.warn_logp_difference`."""

    @property
    def needs_correction(self) -> bool:
        """No: it is the trainer's own forward."""
        return False

    @property
    def takes_prefixes(self) -> bool:
        """Yes: the model reads them with the prompt."""
        return True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"rollout.engine.batch_size={self.batch_size}: expected at least 1")

    def check(self, source: ModelSource) -> None:
        """Whatever transformers can load it can sample from."""

    @contextmanager
    def serving(self, policy: Policy) -> Generator[TransformersSampler]:
        """See `RolloutEngine.serving`; the policy's own weights are used where they lie."""
        # Dropout would sample from another policy than the one whose log-probabilities are compared.
        was_training = policy.model.training
        policy.model.eval()
        try:
            with whole(policy.model):
                yield TransformersSampler(policy=policy, batch_size=self.batch_size)
        finally:
            policy.model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class TransformersSampler:
    """A policy that is asked."""

    policy: Policy
    batch_size: int

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See `Sampler.generate`."""
        prefixes = [()] * len(conversations) if prefixes is None else prefixes
        generator = torch.Generator(device_of(self.policy.model)).manual_seed(seed)
        prompts_per_batch = max(1, self.batch_size // num_generations)
        return [
            group
            for start in range(0, len(conversations), prompts_per_batch)
            for group in _complete(
                self.policy,
                conversations[start : start + prompts_per_batch],
                prefixes[start : start + prompts_per_batch],
                num_generations,
                sampling,
                generator,
            )
        ]


def encode_prompts(policy: Policy, conversations: Sequence[Conversation]) -> Any:
    """Token ids [B, P] (left-padded), attention mask [B, P], pixel values and image grids of a batch of prompts."""
    return policy.processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


@torch.no_grad()
def _complete(
    policy: Policy,
    conversations: Sequence[Conversation],
    prefixes: Sequence[Sequence[int]],
    num_generations: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> list[list[Completion]]:
    inputs = encode_prompts(policy, conversations)
    written = _with_prefixes(inputs, prefixes) if any(prefixes) else inputs
    rows = _decode(policy, written.to(device_of(policy.model)), num_generations, sampling, generator)
    ends = set(policy.end_token_ids)
    groups: list[list[Completion]] = []
    for index, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        prompt_ids = tuple(ids[mask.bool()].tolist())
        groups.append(
            [
                Completion(
                    prompt_ids=prompt_ids,
                    token_ids=tuple(tokens),
                    logps=tuple(logps),
                    is_truncated=tokens[-1] not in ends,
                )
                for tokens, logps in rows[index * num_generations : (index + 1) * num_generations]
            ]
        )
    return groups


def _with_prefixes(inputs: Any, prefixes: Sequence[Sequence[int]]) -> Any:
    """The same prompts, each with its prefix after it: their tokens as they are, padded on the left once more."""
    lengths = [int(mask.sum()) + len(prefix) for mask, prefix in zip(inputs["attention_mask"], prefixes, strict=True)]
    padded = type(inputs)(dict(inputs))
    for name, added in (("input_ids", None), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        # What stands left of a prompt is never seen, so it may be zero.
        rows = inputs[name].new_zeros(len(prefixes), max(lengths))
        for row, old, mask, prefix in zip(rows, inputs[name], inputs["attention_mask"], prefixes, strict=True):
            prompt = old[mask.bool()]
            row[len(row) - len(prompt) - len(prefix) : len(row) - len(prefix)] = prompt
            row[len(row) - len(prefix) :] = row.new_tensor(prefix) if added is None else added
        padded[name] = rows
    return padded


def _decode(
    policy: Policy, inputs: Any, num_generations: int, sampling: Sampling, generator: torch.Generator
) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of B x G rows, a prompt's rows side by side."""
    limit = sampling.max_completion_length
    logits, rows = begin(policy.model, inputs, num_generations=num_generations, max_length=limit)
    banned = torch.tensor(policy.image_token_ids, device=logits.device)
    ends = torch.tensor(policy.end_token_ids, device=logits.device)
    written = torch.zeros(len(logits), limit, dtype=torch.long, device=logits.device)
    logps = torch.zeros(len(logits), limit, device=logits.device)
    lengths = torch.zeros_like(written[:, 0])
    alive = torch.arange(len(logits), device=logits.device)
    for step in range(limit):
        tokens, logps[alive, step] = draw(logits.float(), banned, sampling, generator)
        written[alive, step] = tokens
        lengths[alive] = step + 1
        kept = torch.isin(tokens, ends, invert=True).nonzero()[:, 0]
        if step + 1 == limit or not len(kept):
            break
        if len(kept) < len(tokens):
            rows.keep(kept)
            alive, tokens = alive[kept], tokens[kept]
        logits = rows.logits(tokens)
    drawn = zip(written.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    return [(tokens[:length], logps[:length]) for tokens, logps, length in drawn]


def draw(
    logits: torch.Tensor, banned: torch.Tensor, sampling: Sampling, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, and its log-probability.

    Args:
        logits: [N, V], float32.
        banned: token ids that are never drawn.
        sampling: temperature, top-k and top-p, applied in this order.
        generator: the only source of randomness.

    Returns:
        Tokens [N] and log-probabilities [N] at the sampling temperature (at 1 when it is 0), before the ban and the
        cuts: this is what the trainer computes, so that the two can be compared token by token.
    """
    logps = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
    allowed = logps.index_fill(-1, banned, -torch.inf)
    if sampling.temperature == 0:
        tokens = allowed.argmax(dim=-1)
    else:
        if sampling.top_k:
            kth = allowed.topk(min(sampling.top_k, allowed.shape[-1]), dim=-1).values[:, -1:]
            allowed = allowed.masked_fill(allowed < kth, -torch.inf)
        if sampling.top_p < 1:
            ordered, order = allowed.softmax(dim=-1).sort(dim=-1, descending=True)
            # A token stays while the probability before it is below top_p: the first one always does.
            outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
            allowed = allowed.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
        tokens = torch.multinomial(allowed.softmax(dim=-1), 1, generator=generator)[:, 0]
    return tokens, logps.gather(-1, tokens[:, None])[:, 0]
