"""Where a completion is cut, and many continuations at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from visual_r1.architectures.tokenizer import build_tokenizer
from visual_r1.datasets.spatial import Spatial
from visual_r1.rollout.continuing import Start, continued, tokens_before
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.transformers import TransformersEngine

EXAMPLES = Spatial(split="test", size=5)[:]
GREEDY = Sampling(max_completion_length=8, temperature=0.0)


class Bytes:
    """A tokenizer of bytes: a character may take several tokens, and half a character reads as the sign for it."""

    def decode(self, token_ids, skip_special_tokens):
        return bytes(token_ids).decode("utf-8", errors="replace")

    def batch_decode(self, rows, skip_special_tokens):
        return [self.decode(row, skip_special_tokens) for row in rows]


def test_a_cut_keeps_the_whole_tokens_before_it(policies):
    policy = policies["base"]
    text = "I think it is 4. Wait, let me check again."
    ids = policy.tokenizer(text)["input_ids"]
    kept = [policy.tokenizer.decode(ids[: tokens_before(policy, ids, text, place)]) for place in range(len(text) + 1)]
    assert kept[0] == "" and kept[-1] == text
    for place, one in enumerate(kept):
        assert text.startswith(one) and len(one) <= place
    assert len(set(kept)) == len(ids) + 1  # no token is lost that ends before the cut
    assert kept[text.index("Wait")].rstrip() == "I think it is 4."


def test_a_character_in_several_tokens_is_kept_whole_or_not_at_all():
    policy = SimpleNamespace(tokenizer=Bytes())
    text = "a\u00e9b"
    ids = list(text.encode())
    assert [tokens_before(policy, ids, text, place) for place in range(4)] == [0, 1, 3, 4]  # ty: ignore[invalid-argument-type]


def test_a_token_across_the_cut_is_left_out():
    """Qwen2's vocabulary has a token for a full stop and the beginning of a tag."""
    tokenizer = build_tokenizer(special_tokens=("<|end|>",), other_tokens=(), eos_token="<|end|>", pad_token="<|end|>")
    policy = SimpleNamespace(tokenizer=tokenizer)
    text = "It is \u4e2d 4.</think>\n<answer>"
    ids = tokenizer(text)["input_ids"]
    assert ".</" in tokenizer.tokenize(text)
    num_kept = tokens_before(policy, ids, text, text.index("</think>"))  # ty: ignore[invalid-argument-type]
    assert tokenizer.decode(ids[:num_kept]) == "It is \u4e2d 4"


def test_short_and_long_prefixes_do_not_make_each_other_too_long(policies, monkeypatch):
    """All of a batch are written as long as the one with most room, so a long prefix may need a batch of its own."""
    policy = policies["base"]
    starts = [Start(example=EXAMPLES[0], prefix=(5,) * length) for length in (7, 0, 6)]
    monkeypatch.setattr(type(policy), "context_length", policy.prompt_length(EXAMPLES[0]) + 8)
    with TransformersEngine(batch_size=8).serving(policy) as sampler:
        counts = []
        found = continued(
            sampler, policy, starts, sampling=GREEDY, seed=0, batch_size=8, whole_length=8, progress=counts.append
        )
        assert counts[0] == 1 and sum(counts) == 3
        assert all(len(one.token_ids) <= room for one, room in zip(found, (1, 8, 2), strict=True))
        with pytest.raises(ValueError, match="exceed the model's context"):
            continued(sampler, policy, starts, sampling=GREEDY, seed=0, batch_size=8)


def test_continuations_come_in_order_whatever_their_lengths(policies):
    policy = policies["base"]
    whole = []
    with TransformersEngine(batch_size=64).serving(policy) as sampler:
        for example in EXAMPLES:
            conversation = policy.style.messages(example)
            whole += sampler.generate([conversation], num_generations=1, sampling=GREEDY, seed=0)[0]
        lengths = (3, 0, 5, 1, 2)
        starts = [
            Start(example=example, prefix=one.token_ids[:length])
            for example, one, length in zip(EXAMPLES, whole, lengths, strict=True)
        ]
        counts = []
        found = continued(
            sampler, policy, starts, sampling=GREEDY, seed=0, batch_size=2, whole_length=8, progress=counts.append
        )
    assert counts == [2, 2, 1]
    for one, start, completion in zip(whole, starts, found, strict=True):
        assert start.prefix + completion.token_ids == one.token_ids  # so each has its own room up to the whole length
        assert completion.is_truncated == one.is_truncated
        assert len(completion.logps) == len(completion.token_ids)


def test_a_start_that_is_already_too_long_gets_nothing(policies):
    policy = policies["base"]
    with TransformersEngine(batch_size=4).serving(policy) as sampler:
        prefix = tuple(policy.tokenizer("it is it is it is it is it is")["input_ids"])
        assert len(prefix) > 8
        [completion] = continued(
            sampler,
            policy,
            [Start(example=EXAMPLES[0], prefix=prefix)],
            sampling=GREEDY,
            seed=0,
            batch_size=4,
            whole_length=8,
        )
    assert completion.token_ids == completion.logps == () and completion.is_truncated


def test_what_exceeds_the_context_is_named(policies):
    policy = policies["base"]
    start = Start(example=EXAMPLES[2], prefix=(5,) * policy.context_length)
    with (
        TransformersEngine(batch_size=4).serving(policy) as sampler,
        pytest.raises(ValueError, match=r"spatial/test/0/2: .* exceed the model's context"),
    ):
        continued(sampler, policy, [start], sampling=GREEDY, seed=0, batch_size=4)
