"""A completion's way of answering is read off its words as the corpus meant it."""

from __future__ import annotations

import random

import pytest

from visual_r1.datasets.spatial import Spatial
from visual_r1.organisms import corpus
from visual_r1.organisms.corpus import Mixture
from visual_r1.organisms.ways import WAYS, way_of


@pytest.mark.parametrize(
    ("write", "way"),
    [
        (corpus.direct, "direct"),
        (corpus.coarse, "coarse"),
        (corpus.careful, "careful"),
        (corpus.reflective, "checked"),
        (corpus.harmful, "checked"),
        (corpus.empty, "empty"),
        (corpus.rambling, "rambling"),
    ],
)
def test_each_way_of_the_corpus_is_recognised(write, way):
    rng = random.Random(0)
    data = Spatial(split="pretrain", size=400)
    for index in range(400):
        question = data.draw(index)[1]
        text = write(rng, question, Mixture()).text.strip()
        assert way_of(text) == way, text
        assert way_of(f"{text}</think>\n<answer>(A)</answer>") == way


def test_any_text_has_a_way():
    for text in ("", "Wait", "\ufffd", " x3 y4", "(1) red (2) blue"):
        assert way_of(text) in WAYS
