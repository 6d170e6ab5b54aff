"""What a journal has is not sampled again, by whoever asks, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from visual_r1.datasets.spatial import Spatial
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.remembering import Journal, JournalError
from visual_r1.rollout.transformers import TransformersEngine

EXAMPLES = Spatial(split="test", size=3)[:]
REQUEST: dict[str, Any] = {
    **{"num_generations": 2, "sampling": Sampling(max_completion_length=4), "seed": 0, "prefixes": [[5], [6, 7]]}
}


class Counting:
    """A sampler that counts what it is asked."""

    def __init__(self, sampler):
        self._sampler, self.num_calls = sampler, 0

    def generate(self, conversations, **request):
        self.num_calls += 1
        return self._sampler.generate(conversations, **request)


@pytest.fixture
def asked(policies):
    with TransformersEngine(batch_size=8).serving(policies["base"]) as sampler:
        yield Counting(sampler)


@pytest.fixture
def prompts(policies):
    return [policies["base"].style.messages(example) for example in EXAMPLES]


def test_what_was_answered_is_not_asked_again_even_by_the_next_process(tmp_path, asked, prompts):
    journal = Journal(tmp_path / "journal")
    first = journal.sampler(asked, of="x").generate(prompts[:2], **REQUEST)
    assert first == asked.generate(prompts[:2], **REQUEST) and asked.num_calls == 2
    journal.close()
    again = Journal(tmp_path / "journal")
    assert again.num_completions == 4
    assert again.sampler(asked, of="x").generate(prompts[:2], **REQUEST) == first and asked.num_calls == 2
    again.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"num_generations": 1},
        {"sampling": Sampling(max_completion_length=4, temperature=0.5)},
        {"prefixes": [[5], [6, 8]]},
        {"prefixes": None},
    ],
    ids=str,
)
def test_another_request_is_asked(tmp_path, asked, prompts, changed):
    sampler = Journal(tmp_path / "journal").sampler(asked, of="x")
    sampler.generate(prompts[:2], **REQUEST)
    sampler.generate(prompts[:2], **{**REQUEST, **changed})
    assert asked.num_calls == 2


def test_another_prompt_image_or_policy_is_asked(tmp_path, policies, asked, prompts):
    journal = Journal(tmp_path / "journal")
    one, other = EXAMPLES[:2]
    moved = policies["base"].style.messages(replace(one, images=other.images))
    for number, (of, question) in enumerate([("x", prompts[0]), ("x", moved), ("y", prompts[0])], start=1):
        journal.sampler(asked, of=of).generate([question, prompts[2]], **REQUEST)
        assert asked.num_calls == number


def test_a_line_that_was_cut_short_is_dropped_and_written_again(tmp_path, asked, prompts):
    path = tmp_path / "journal"
    journal = Journal(path)
    for start in (0, 1):
        journal.sampler(asked, of="x").generate(prompts[start : start + 2], **REQUEST)
    journal.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in (first + 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        journal, asked.num_calls = Journal(path), 0
        assert journal.num_completions == 4 and path.read_bytes() == whole[:first]
        for start in (0, 1):
            journal.sampler(asked, of="x").generate(prompts[start : start + 2], **REQUEST)
        journal.close()
        assert asked.num_calls == 1 and path.read_bytes() == whole


def test_two_at_once_are_refused(tmp_path):
    path = tmp_path / "journal"
    first = Journal(path)
    with pytest.raises(JournalError, match="is being written by another process: wait for it"):
        Journal(path)
    first.close()
    Journal(path).close()
