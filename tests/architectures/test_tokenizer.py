"""The rebuilt tokenizer against published encodings and against byte-pair encoding from the ranks themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from visual_r1.architectures import tokenizer as module
from visual_r1.architectures.checkpoints import read_architecture
from visual_r1.architectures.tokenizer import VocabularyError, build_tokenizer, read_ranks, vocabulary_and_merges


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(**read_architecture("qwen2_vl_2b")["tokenizer"])


# Each as public code prints it for Qwen2, Qwen2.5, Qwen2-VL or Qwen3, which share these ids.
PUBLISHED = {
    "<|im_start|>hello<|im_end|>": [151644, 14990, 151645],
    "Hello, world!": [9707, 11, 1879, 0],
    " hello sir. How are you Edward?": [23811, 27048, 13, 2585, 525, 498, 21891, 30],
    "What is 2 plus 2?": [3838, 374, 220, 17, 5519, 220, 17, 30],
    "What is 2+2?": [3838, 374, 220, 17, 10, 17, 30],
    "你好": [108386],
    "类型#上衣*风格#街头*": [31905, 2, 17447, 99741, 9, 104040, 2, 108094, 9],
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n": [
        *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198),
        *(151644, 872, 198),
    ],
    "<|im_start|>assistant\n": [151644, 77091, 198],
    "<|vision_start|><|image_pad|><|vision_end|>": [151652, 151655, 151653],
}


@pytest.mark.parametrize("text", PUBLISHED, ids=repr)
def test_published_encodings(tokenizer, text):
    assert tokenizer(text)["input_ids"] == PUBLISHED[text]
    assert tokenizer.decode(PUBLISHED[text]) == text


def test_the_vocabulary_has_the_published_size(tokenizer):
    vocabulary, merges = vocabulary_and_merges()
    assert len(vocabulary) == 151_643 and len(merges) == len(set(merges)) == 151_387
    assert merges[:6] == [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("i", "n"), ("Ġ", "t"), ("ĠĠĠĠ", "ĠĠĠĠ"), ("e", "r")]
    assert len(tokenizer) == 151_657
    ids = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|object_ref_start|>": 151646, "<|video_pad|>": 151656}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token, tokenizer.unk_token) == (
        *(151645, 151643, None, None),
    )


def encoded(word, ranks):
    """Byte-pair encoding by its definition: the pair whose union ranks lowest is joined, as long as one has a rank."""
    parts = [bytes([byte]) for byte in word.encode()]
    while True:
        pairs = [
            (ranks[one + two], index)
            for index, (one, two) in enumerate(zip(parts, parts[1:], strict=False))
            if one + two in ranks
        ]
        if not pairs:
            return [ranks[part] for part in parts]
        _, index = min(pairs)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]


def test_merges_encode_as_the_ranks_do(tokenizer):
    ranks = read_ranks()
    text = " ".join(path.read_text() for path in (Path(__file__).parents[2] / "visual_r1").glob("*.py"))
    text += " Übergrößenträger naïve ﬁsh 视觉语言模型的推理能力 こんにちは 🙂🙃 здравствуйте"
    cut = tokenizer.backend_tokenizer
    words = {word for word, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(text))}
    letters = {letter: byte for byte, letter in module.bytes_to_unicode().items()}
    assert len(words) > 1000
    for word in words:
        # The pre-tokenizer writes bytes as letters; a word that it cut inside a character cannot be read back alone.
        raw = bytes(letters[letter] for letter in word).decode()
        assert tokenizer(raw)["input_ids"] == encoded(raw, ranks), raw


def test_digits_stand_alone(tokenizer):
    assert tokenizer("12345")["input_ids"] == [16, 17, 18, 19, 20]


def test_text_is_composed_first(tokenizer):
    assert tokenizer("e\N{COMBINING ACUTE ACCENT}")["input_ids"] == tokenizer("é")["input_ids"] == [963]


def test_qwen3_keeps_its_thought_tags():
    tokenizer = build_tokenizer(**read_architecture("qwen3_vl_2b_instruct")["tokenizer"])
    ids = tokenizer("<think>so</think><|im_end|>")["input_ids"]
    assert ids[0] == 151667 and ids[-2:] == [151668, 151645]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>so</think>"


def test_a_missing_vocabulary_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VocabularyError, match="pip install --no-deps dashscope") as error:
        read_ranks()
    assert "\n" not in str(error.value)


def test_another_table_is_refused(monkeypatch, tmp_path):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "qwen.tiktoken").write_text("IQ== 0\nIg== 2\n")
    spec = importlib.util.find_spec("json")
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(VocabularyError, match="holds 2 ranks, expected 0 to 151642"):
        read_ranks()
