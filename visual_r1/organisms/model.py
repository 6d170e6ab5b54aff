"""The organisms' architectures, first weights and processor: a Qwen2-VL in every part, only small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from visual_r1.organisms.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, IMAGE_PAD

_MIN_PIXELS, _MAX_PIXELS = 4 * 28 * 28, 64 * 28 * 28


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of an organism, in the words of Qwen2-VL's configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    """Pairs of a head's numbers that time, height and width rotate; they add up to half of a head."""
    vision_depth: int
    vision_width: int
    vision_heads: int


NANO = Architecture(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    mrope_section=(4, 6, 6),
    vision_depth=2,
    vision_width=96,
    vision_heads=3,
)
"""1.4 million parameters."""
MICRO = Architecture(
    hidden_size=384,
    intermediate_size=1152,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=2,
    mrope_section=(8, 12, 12),
    vision_depth=6,
    vision_width=256,
    vision_heads=4,
)
"""20 million parameters."""


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """Qwen2-VL's processor; pictures keep between 4 and 64 image tokens."""
    size = {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: Qwen2Tokenizer, *, seed: int, architecture: Architecture = NANO
) -> Qwen2VLForConditionalGeneration:
    """A model in float32 with random weights."""
    torch.manual_seed(seed)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    start = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    text = {
        # A multiple of 64, as inference engines like it.
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": list(architecture.mrope_section),
        },
        "tie_word_embeddings": True,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    vision = {
        "depth": architecture.vision_depth,
        "embed_dim": architecture.vision_width,
        "hidden_size": architecture.hidden_size,
        "num_heads": architecture.vision_heads,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen2VLForConditionalGeneration(config)
    _initialise(model)
    set_end_token(model, tokenizer)
    return model


def set_end_token(model: Qwen2VLForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Makes the model stop where the tokenizer says that a text ends."""
    for config in (model.config, model.config.text_config, model.generation_config):
        config.bos_token_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


@torch.no_grad()
def _initialise(model: Qwen2VLForConditionalGeneration) -> None:
    """Weights of standard deviation 1/sqrt(fan-in): at this width, transformers' 0.02 learns several times slower."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if "embed_tokens" in name:
            parameter.normal_(0, 0.05)
            continue
        parameter.normal_(0, parameter[0].numel() ** -0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
            # What each block adds to the residual stream starts small.
            parameter.mul_(0.5)
