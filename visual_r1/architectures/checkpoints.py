"""Checkpoints of a true architecture with random weights, in the files that the hub has.

They load like any other checkpoint, by the path that a download takes: old configuration keys, old weight names.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from visual_r1.architectures.tokenizer import build_tokenizer
from visual_r1.files import read_json, write_json

_FOLDER = Path(__file__).parent
ARCHITECTURES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""What `build_checkpoint` can build. README.md names the source of each number."""


def build_checkpoint(
    name: str,
    folder: Path,
    *,
    text_layers: int | None = None,
    vision_depth: int | None = None,
    dtype: str = "bfloat16",
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Writes a checkpoint of full width and vocabulary, whole or not at all.

    Args:
        name: one of `ARCHITECTURES`.
        folder: where to; what lies there is replaced.
        text_layers: layers of the language model; None takes all.
        vision_depth: blocks of the vision tower; None takes all.
        dtype: of the written weights, ``bfloat16`` or ``float32``.
        device: where the weights are drawn; another device draws others from the same seed.
        seed: of the weights.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown name, or a depth that is not between 1 and the architecture's own.
        VocabularyError: the tokenizer's vocabulary is not installed.
    """
    description = read_architecture(name)
    files = description["files"]
    files["config.json"] = with_depth(files["config.json"], text_layers=text_layers, vision_depth=vision_depth)
    return write_checkpoint(description, folder, dtype=dtype, device=device, seed=seed)


def write_checkpoint(
    description: Mapping[str, Any], folder: Path, *, dtype: str = "bfloat16", device: str = "cpu", seed: int = 0
) -> Path:
    """Writes a checkpoint by a description as `read_architecture` gives it, or one that was changed since.

    Arguments and errors are those of `build_checkpoint`.
    """
    files = copy.deepcopy(description["files"])
    config = files["config.json"]
    for part in (config, _text_part(config)):
        part["torch_dtype" if "torch_dtype" in part else "dtype"] = dtype
    tokenizer = build_tokenizer(**description["tokenizer"])
    model = build_model(config, dtype=dtype, device=device, seed=seed)

    staging = folder.with_name(f".{folder.name}.partial")
    for leftover in (staging, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(staging)  # under the names of the hub's weights
    tokenizer.save_pretrained(staging)
    for file_name, content in files.items():
        write_json(staging / file_name, content)
    write_json(staging / "chat_template.json", {"chat_template": read_chat_template(description["chat_template"])})
    staging.replace(folder)
    return folder


def read_architecture(name: str) -> dict[str, Any]:
    """A description: hub id, number of parameters, tokenizer, and the checkpoint's JSON files by name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r}: unknown, expected one of {list(ARCHITECTURES)}")
    return read_json(_FOLDER / f"{name}.json")


def build_model(config: Mapping[str, Any], *, dtype: str, device: str, seed: int) -> PreTrainedModel:
    """A model with transformers' own random weights, from a ``config.json``; the device ``meta`` allocates nothing."""
    parsed = AutoConfig.for_model(**copy.deepcopy(dict(config)))
    drawn_on = [] if device in ("cpu", "meta") else [torch.device(device)]
    with torch.random.fork_rng(devices=drawn_on), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(parsed, dtype=getattr(torch, dtype))


def read_chat_template(name: str) -> str:
    """A chat template, from a file beside this one or, after a package's name, from an installed package.

    trl ships the templates of the hub, to the byte.
    """
    package, _, path = name.partition("/")
    if not path:
        return (_FOLDER / name).read_text(encoding="utf-8")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, package
    return (Path(spec.origin).parent / path).read_text(encoding="utf-8")


def with_depth(config: Mapping[str, Any], *, text_layers: int | None, vision_depth: int | None) -> dict[str, Any]:
    """The content of a ``config.json`` with fewer layers; None keeps all.

    Raises:
        ValueError: a depth that is not between 1 and the architecture's own.
    """
    config = copy.deepcopy(dict(config))
    text, vision = _text_part(config), config["vision_config"]
    for name, value, part, key in (
        ("text_layers", text_layers, text, "num_hidden_layers"),
        ("vision_depth", vision_depth, vision, "depth"),
    ):
        if value is None:
            continue
        if not 1 <= value <= part[key]:
            raise ValueError(f"{name}={value}: expected 1 to {part[key]}")
        part[key] = value
    depth = vision["depth"]
    if "fullatt_block_indexes" in vision:
        # The last block stays one that sees the whole image.
        kept = {index for index in vision["fullatt_block_indexes"] if index < depth}
        vision["fullatt_block_indexes"] = sorted(kept | {depth - 1})
    if "deepstack_visual_indexes" in vision:
        # Each of these blocks adds to the output of one of the first text layers; after the last no token would see it.
        indexes = [index for index in vision["deepstack_visual_indexes"] if index < depth] or [depth - 1]
        vision["deepstack_visual_indexes"] = indexes[: max(1, text["num_hidden_layers"] - 1)]
    return config


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration, which before transformers 5 stood at its top."""
    return config.get("text_config", config)
