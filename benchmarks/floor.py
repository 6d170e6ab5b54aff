"""The least that an update can take: what must be multiplied once, over how fast the machine multiplies.

Counted are multiplications of matrices and of attention, two operations each. Backward is twice forward. Not counted
is what a good step has little of: norms, activations, softmax, positions, the memory that all of it moves through.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

BACKWARD = 3
"""Forward and backward together, in forwards."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of one forward pass."""

    vision: float
    """The tower and its merger, attention included."""
    text: float
    """The language model's matrices."""
    attention: float
    """Of the language model."""
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.vision + self.text + self.attention + self.head

    def __add__(self, other: Work) -> Work:
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def once(config: Mapping[str, Any], *, image_tokens: Sequence[int], text_tokens: int, lengths: Sequence[int]) -> Work:
    """What a forward pass must do: each image, each prompt and each token of a completion once.

    Args:
        config: a ``config.json`` of Qwen2-VL's kind, as transformers 5 writes it.
        image_tokens: of each prompt's image.
        text_tokens: of each prompt beside them.
        lengths: of the completions, the same number for each prompt, prompt after prompt.
    """
    group = len(lengths) // len(image_tokens)
    work = Work(vision=0, text=0, attention=0, head=0)
    for number, image in enumerate(image_tokens):
        prompt, own = image + text_tokens, lengths[number * group : (number + 1) * group]
        seen = prompt * (prompt + 1) / 2 + sum(length * prompt + length * (length + 1) / 2 for length in own)
        work += _work(config, images=[image], tokens=prompt + sum(own), seen=seen, scored=sum(own))
    return work


def padded(config: Mapping[str, Any], *, image_tokens: Sequence[int], text_tokens: int, lengths: Sequence[int]) -> Work:
    """What stock trl's forward pass does: for each completion its image and its prompt, all padded to the longest."""
    group = len(lengths) // len(image_tokens)
    width = max(image_tokens) + text_tokens + max(lengths)
    images = [image for image in image_tokens for _ in range(group)]
    seen = len(lengths) * width * (width + 1) / 2
    return _work(config, images=images, tokens=len(lengths) * width, seen=seen, scored=sum(lengths))


def _work(config: Mapping[str, Any], *, images: Sequence[int], tokens: float, seen: float, scored: float) -> Work:
    text, vision = config["text_config"], config["vision_config"]
    width, layers = text["hidden_size"], text["num_hidden_layers"]
    shares = text["num_key_value_heads"] / text["num_attention_heads"]
    # Queries, keys, values and what joins them; the three matrices of the MLP.
    matrices = layers * (width * width * (2 + 2 * shares) + 3 * width * text["intermediate_size"])
    inner, depth = vision["embed_dim"], vision["depth"]
    patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    merged = inner * vision["spatial_merge_size"] ** 2
    tower = 0.0
    for image in images:
        patches = image * vision["spatial_merge_size"] ** 2
        blocks = depth * inner * inner * (4 + 2 * vision["mlp_ratio"])
        tower += 2 * patches * (patch * inner + blocks) + 2 * image * merged * (merged + vision["hidden_size"])
        tower += 4 * depth * patches * patches * inner
    return Work(
        vision=tower,
        text=2 * tokens * matrices,
        attention=4 * layers * width * seen,
        head=2 * scored * width * text["vocab_size"],
    )


def matmul_rate(config: Mapping[str, Any], *, tokens: int, patches: int, repeats: int = 5) -> float:
    """Operations a second of this machine in float32, over matrices of the shapes that the model multiplies.

    Args:
        config: as of `once`.
        tokens: rows that pass the language model.
        patches: rows that pass the vision tower.
        repeats: of each product, of which the median counts.
    """
    text, vision = config["text_config"], config["vision_config"]
    width, inner = text["hidden_size"], vision["embed_dim"]
    keys = width * text["num_key_value_heads"] // text["num_attention_heads"]
    shapes = [
        *((tokens, width, other) for other in (width, keys, text["intermediate_size"])),
        (tokens, text["intermediate_size"], width),
        *((patches, inner, other * inner) for other in (3, 1, vision["mlp_ratio"])),
        (patches, vision["mlp_ratio"] * inner, inner),
    ]
    counts = [2, 2, 2, 1, 1, 1, 1, 1]
    weights = [text["num_hidden_layers"]] * 4 + [vision["depth"]] * 4
    operations = seconds = 0.0
    for (rows, depth, columns), count, weight in zip(shapes, counts, weights, strict=True):
        left, right = torch.randn(rows, depth), torch.randn(columns, depth)
        times = []
        for _ in range(1 + repeats):
            started = time.perf_counter()
            torch.nn.functional.linear(left, right)
            times.append(time.perf_counter() - started)
        operations += 2 * rows * depth * columns * count * weight
        seconds += median(times[1:]) * count * weight
    return operations / seconds
