"""The organisms' tokenizer: byte-level BPE with Qwen2-VL's special tokens, where each word of a world is one token."""

from __future__ import annotations

import json
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from visual_r1.datasets.spatial import draw_split_scene
from visual_r1.organisms.corpus import Mixture, ask_any, caption, coordinates, dialogue, exercise, terse
from visual_r1.organisms.scenes import NANO, World
from visual_r1.prompts import PROMPT_STYLES

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Single tokens that are not special: ``decode(skip_special_tokens=True)`` keeps them."""
LETTERS = ("(A)", "(B)", "(C)", "(D)")
"""Single tokens as well, where the pre-tokenizer would cut a letter off its closing bracket."""

# Qwen2-VL's own template, byte for byte in effect.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, eos_token: str, world: World = NANO) -> Qwen2Tokenizer:
    """Learns the merges from a world's words. The same on every call; only the end-of-sequence token is a choice."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Each word counts once, and the size is no limit: learning ends when every word is one token.
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator(_words(world), trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"]
    # Given their numbers here, because the tokenizer would number its end token first, whichever that is.
    vocabulary |= {token: len(vocabulary) + index for index, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=None,
        eos_token=eos_token,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (eos_token, END_OF_TEXT)],
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (*TAGS, *LETTERS)])
    return tokenizer


def _words(world: World, num_scenes: int = 1500) -> list[str]:
    """The pieces into which Qwen2's pre-tokenizer cuts the prompts, the chat format and a sample of the corpus."""
    rng = random.Random(0)
    mixture = Mixture()
    texts = [style.template for style in PROMPT_STYLES.values()]
    texts += ["system\nYou are a helpful assistant.", "user\n", "assistant\n", "\n", " "]
    for _ in range(num_scenes):
        scene = draw_split_scene(rng, "pretrain", world)
        question = ask_any(rng, scene)
        texts += [coordinates(rng, scene), caption(rng, scene), terse(rng, question, looks=0.5)]
        # The chat format puts the question first, so its first word comes without a blank too.
        texts += [
            question.text,
            f"Exercise: {question.text} \n",
            exercise(rng, question, mixture),
            dialogue(rng, question, mixture),
        ]
    cut = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    words = set()
    for text in texts:
        for tag in (*TAGS, *LETTERS):
            text = text.replace(tag, "\0")
        for part in text.replace("{question}", "\0").split("\0"):
            words.update(word for word, _ in cut.pre_tokenize_str(part))
    return sorted(words)
