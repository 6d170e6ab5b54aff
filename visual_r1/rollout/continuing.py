"""Going on from partly written completions, many at once; and where a completion's tokens may be cut.

The tokens that stand are kept as the model drew them, text that is put in is tokenised by itself, and the two are set
side by side. So the joint may fall where the model's own tokenisation would have none: "</" of a "</think>" that is put
in is never merged with the full stop before it. A cut keeps whole tokens: the blank before a "Wait" goes with it where
both are one token, and stays where it is a token of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from visual_r1.examples import Example
from visual_r1.models import Policy
from visual_r1.rollout.engine import Completion, Sampler, Sampling


@dataclass(frozen=True, kw_only=True)
class Start:
    """A completion that is partly written."""

    example: Example
    """Fitted to the policy's limits, with the images that the rest is written under."""
    prefix: tuple[int, ...]


def continued(
    sampler: Sampler,
    policy: Policy,
    starts: Sequence[Start],
    *,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    whole_length: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Completion]:
    """One continuation of each start, in order.

    Args:
        sampler: of an engine that takes prefixes.
        policy: who writes.
        starts: what is there already.
        sampling: how tokens are drawn, and how many are added at most.
        seed: of all together.
        batch_size: how many are written at once.
        whole_length: a limit of prefix and continuation together, in tokens; None limits the continuation alone.
        progress: told after each batch how many more are done.

    Raises:
        ValueError: a prompt, its prefix and the continuation exceed the model's context, with the example's id.
    """
    # Alike in length, they need little padding and end at about the same time.
    order = sorted(range(len(starts)), key=lambda index: len(starts[index].prefix))
    found: dict[int, Completion] = {}
    prompt_lengths: dict[str, int] = {}
    rooms = [_room(start, sampling, whole_length) for start in starts]
    lengths = []
    for start, room in zip(starts, rooms, strict=True):
        if start.example.id not in prompt_lengths:
            prompt_lengths[start.example.id] = policy.prompt_length(start.example)
        length = prompt_lengths[start.example.id] + len(start.prefix)
        lengths.append(length)
        if length + room > policy.context_length:
            raise ValueError(
                f"{start.example.id}: a prompt with a partly written completion, {length} tokens, and up to {room} "
                f"more exceed the model's context of {policy.context_length}; lower model.max_pixels or the completion "
                "length"
            )
    first = 0
    while first < len(order):
        batch = [order[first]]
        most = max(1, rooms[batch[0]])  # the shortest prefix leaves most room, and all are written so long
        for index in order[first + 1 : first + batch_size]:
            if lengths[index] + most > policy.context_length:
                break
            batch.append(index)
        written = replace(sampling, max_completion_length=most)
        groups = sampler.generate(
            [policy.style.messages(starts[index].example) for index in batch],
            num_generations=1,
            sampling=written,
            seed=seed + first,
            prefixes=[starts[index].prefix for index in batch],
        )
        for index, [completion] in zip(batch, groups, strict=True):
            found[index] = _cut(completion, rooms[index])
        first += len(batch)
        progress(len(batch))
    return [found[index] for index in range(len(starts))]


def tokens_before(policy: Policy, token_ids: Sequence[int], text: str, place: int) -> int:
    """How many whole tokens end at or before a character of their text: a token across it is left out.

    Args:
        policy: whose tokens they are.
        token_ids: a completion's, without its end token.
        text: what they read as.
        place: the first character that is cut off.
    """
    pieces = policy.tokenizer.batch_decode([[token] for token in token_ids], skip_special_tokens=True)
    if "".join(pieces) == text:
        ends = list(accumulate(map(len, pieces)))
    else:  # a character in several tokens, or a tokenizer whose pieces read otherwise alone
        numbers = range(1, len(token_ids) + 1)
        ends = [len(policy.tokenizer.decode(token_ids[:number], skip_special_tokens=True)) for number in numbers]
    return max((number for number, end in enumerate(ends, start=1) if end <= place), default=0)


def _room(start: Start, sampling: Sampling, whole_length: int | None) -> int:
    """Tokens that may be added."""
    if whole_length is None:
        return sampling.max_completion_length
    return min(sampling.max_completion_length, max(0, whole_length - len(start.prefix)))


def _cut(completion: Completion, room: int) -> Completion:
    if len(completion.token_ids) <= room:
        return completion
    return replace(completion, token_ids=completion.token_ids[:room], logps=completion.logps[:room], is_truncated=True)
