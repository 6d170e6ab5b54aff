"""Of several processes each samples its share: every example once, in order, and as one process would have it."""

from __future__ import annotations

import pytest

from visual_r1 import distributed
from visual_r1.datasets.spatial import Spatial
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.sharing import sample_together
from visual_r1.rollout.transformers import TransformersEngine

EXAMPLES = Spatial(split="probe", size=7)
# Drawn, so that a batch with another's seed would show; batches of two, of which the last has one.
SAMPLING, ENGINE = Sampling(max_completion_length=6), TransformersEngine(batch_size=2)


def words(rollouts):
    return [(rollout.example.id, rollout.completion) for rollout in rollouts]


def sampled(policy, progress):
    return sample_together(ENGINE, policy, EXAMPLES, sampling=SAMPLING, seed=3, progress=progress)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_shares_make_what_one_process_samples(policies, monkeypatch, processes):
    alone = sampled(policies["base"], progress=lambda count: None)
    assert [rollout.example.id for rollout in alone] == [example.id for example in EXAMPLES]
    assert len({words for _, words in words(alone)}) > 3  # of several seeds
    assert not any(rollout.example.images for rollout in alone)

    shares, told = [], []
    monkeypatch.setattr(distributed, "num_processes", lambda: processes)
    monkeypatch.setattr(distributed, "collected", lambda own: shares.append(own) or [])
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        assert sampled(policies["base"], progress=told.append) == []
    assert told == [processes] * len(EXAMPLES)  # each example was sampled in one of the processes
    monkeypatch.setattr(distributed, "collected", lambda own: shares)  # as rank 0 receives them
    assert words(sampled(policies["base"], progress=told.append)) == words(alone)
