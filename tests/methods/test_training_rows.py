"""The table that a trainer reads."""

from __future__ import annotations

from visual_r1.datasets.spatial import Spatial
from visual_r1.methods.training import training_rows


def test_the_model_is_not_pickled_with_it(load, monkeypatch):
    policy, pickled = load(), []

    def refuse(model, _protocol):
        pickled.append(model)
        raise TypeError("datasets goes on without a hash")

    monkeypatch.setattr(type(policy.model), "__reduce_ex__", refuse)
    rows = training_rows(policy, Spatial(split="train", size=4), lambda example: {"id": example.id})
    assert rows[2]["index"] == 2 and rows[2]["id"] == Spatial(split="train", size=4)[2].id
    assert not pickled  # of a 2B model, gigabytes
