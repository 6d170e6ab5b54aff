"""The weights in models/ are those that the code in visual_r1/organisms makes, and do what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from visual_r1.models import ModelSource, load_policy
from visual_r1.organism_card import measure
from visual_r1.organisms.tokenizer import build_tokenizer
from visual_r1.parsing import is_correct, is_well_formed

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = [f"seed{seed}/{name}" for seed in (0, 1, 2) for name in ("nano-base", "nano-instruct")]


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request):
    folder = MODELS / request.param
    return request.param, AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def test_the_vocabulary_is_the_one_that_the_code_builds(shipped):
    _, _, processor = shipped
    built = build_tokenizer(eos_token=processor.tokenizer.eos_token)
    # It fails when the corpus gains or loses a word: the models must then be built again.
    assert processor.tokenizer.get_vocab() == built.get_vocab()
    text = "<think>The red circle: x1 y2.</think>\n<answer>(A)</answer> naïve"
    assert processor.tokenizer(text)["input_ids"] == built(text)["input_ids"]


def test_greedy_answers_are_well_formed_short_and_sometimes_right(shipped):
    name, _, _ = shipped
    policy = load_policy(ModelSource(name=name, path=str(MODELS / name), style=name.rpartition("-")[2]))
    rollouts = measure(policy, num_examples=16, num_repeated=1, repeats=1).greedy
    assert sum(is_well_formed(rollout.text) for rollout in rollouts) >= 12
    assert sum(is_correct(rollout) for rollout in rollouts) >= 4
    assert sum(rollout.num_tokens for rollout in rollouts) / 16 < 40
