"""Checkpoints with random weights that benchmarks measure with, of nano's kind and with nano's tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.recording import NANO
from visual_r1.files import read_json, write_json


def write_33m(folder: Path) -> Path:
    """A checkpoint of 32.5 million random weights, nearly all of them the language model's."""
    text = {
        **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "layer_types": ["full_attention"] * 8},
    }
    return _write(folder, text=text, vision={})


def write_28m(folder: Path) -> Path:
    """A checkpoint of 28.2 million random weights in the proportions of Qwen2-VL-2B.

    Of 2B's language model without its vocabulary, the vision tower has half (0.51; here 0.53) and the vocabulary, whose
    matrix is also the head, 0.18 (here 0.18): 7,680 tokens, of which nano's tokenizer knows the first 704. Six query
    heads share two key heads (2B: twelve two), a head has 64 values (2B: 128). What this cannot shrink in proportion is
    attention, whose work beside that of the matrices grows as tokens over width: at the same number of tokens it weighs
    four times as much as in 2B, in the vision tower as in the language model.
    """
    text = {
        **{"hidden_size": 384, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 7680},
        **{"num_attention_heads": 6, "num_key_value_heads": 2, "layer_types": ["full_attention"] * 6},
    }
    return _write(folder, text=text, vision={"depth": 5, "embed_dim": 320, "num_heads": 4}, max_image_tokens=1024)


def _write(
    folder: Path, *, text: Mapping[str, Any], vision: Mapping[str, Any], max_image_tokens: int | None = None
) -> Path:
    from visual_r1.architectures.checkpoints import build_model

    config = read_json(NANO / "config.json")
    config["text_config"] |= text
    # Heads of 64 values, a position's three parts in the proportions of nano's.
    config["text_config"]["rope_parameters"] |= {"mrope_section": [8, 12, 12]}
    config["vision_config"] |= {**vision, "hidden_size": text["hidden_size"]}
    build_model(config, dtype="float32", device="cpu", seed=0).save_pretrained(folder)
    for file in NANO.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    if max_image_tokens is not None:
        processor = read_json(folder / "processor_config.json")
        processor["image_processor"]["size"]["longest_edge"] = max_image_tokens * 28 * 28
        write_json(folder / "processor_config.json", processor)
    return folder
