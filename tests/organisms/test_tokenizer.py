"""nano's tokenizer: words are tokens, anything round-trips, and the border of prompt and completion is stable."""

from __future__ import annotations

import random
import re

import pytest

from visual_r1.datasets.spatial import Spatial
from visual_r1.organisms import corpus
from visual_r1.organisms.tokenizer import END_OF_TEXT, END_OF_TURN, LETTERS, SPECIAL_TOKENS, TAGS, build_tokenizer
from visual_r1.prompts import PROMPT_STYLES


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(eos_token=END_OF_TEXT)


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_word_of_the_world_is_one_token(tokenizer):
    rng = random.Random(99)
    data = Spatial(split="test", size=200)
    cut = tokenizer.backend_tokenizer.pre_tokenizer
    for index in range(200):
        scene, question = data.draw(index)
        texts = [style.template.replace("{question}", question.text) for style in PROMPT_STYLES.values()]
        texts += [corpus.caption(rng, scene), corpus.terse(rng, question, looks=0.5), f"Exercise: {question.text}"]
        texts += [write(rng, question, corpus.Mixture()) for write in (corpus.exercise, corpus.dialogue)]
        for text in texts:
            for part in re.split(r"</?think>|</?answer>|\([A-D]\)", text):
                words = [word for word, _ in cut.pre_tokenize_str(part)]
                assert tokenizer.convert_ids_to_tokens(_ids(tokenizer, part)) == words


def test_special_tokens_and_tags_are_one_token_each_and_only_tags_survive_decoding(tokenizer):
    for token in (*SPECIAL_TOKENS, *TAGS, *LETTERS):
        assert len(_ids(tokenizer, token)) == 1
    ids = _ids(tokenizer, "<think>So</think>\n<answer>(A)</answer><|im_end|><|endoftext|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>So</think>\n<answer>(A)</answer>"


@pytest.mark.parametrize("text", ["naïve 世界 🦙", "tab\t two  blanks \n\n", "Zebra-crossing 1234!", "<think >"])
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_the_border_between_prompt_and_completion_is_stable(tokenizer):
    rng = random.Random(0)
    data = Spatial(split="probe", size=40)
    chat_end = "<|im_end|>\n<|im_start|>assistant\n"
    for index in range(40):
        question = data.draw(index)[1]
        pairs = [
            (PROMPT_STYLES["base"].text(data[index]), corpus.dialogue(rng, question, corpus.Mixture())),
            (PROMPT_STYLES["instruct"].text(data[index]) + chat_end, corpus.terse(rng, question, looks=0.5)),
        ]
        for prompt, completion in pairs:
            assert _ids(tokenizer, prompt) + _ids(tokenizer, completion) == _ids(tokenizer, prompt + completion)


def test_only_the_end_token_differs_between_the_two_models(tokenizer):
    instruct = build_tokenizer(eos_token=END_OF_TURN)
    # The two share their weights' rows, so a token must have one number in both.
    assert instruct.get_vocab() == tokenizer.get_vocab()
    assert (tokenizer.eos_token, instruct.eos_token) == (END_OF_TEXT, END_OF_TURN)
    assert tokenizer.pad_token == instruct.pad_token == END_OF_TEXT
