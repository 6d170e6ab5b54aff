"""Checkpoints that several modules here share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visual_r1.examples import Example

# Two heads instead of 12 or 16, each of its true size, so that the sections of M-RoPE stay.
_NARROW_TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
_NARROW_VISION = {
    "qwen2_vl": {"embed_dim": 160, "num_heads": 2, "hidden_size": 256},
    "qwen2_5_vl": {"hidden_size": 160, "num_heads": 2, "intermediate_size": 320, "out_hidden_size": 256},
    "qwen3_vl": {"hidden_size": 128, "num_heads": 2, "intermediate_size": 256, "out_hidden_size": 256},
}


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The folder of an architecture with two layers, two blocks and two heads: all else is true, the vocabulary too."""
    from visual_r1.architectures.checkpoints import read_architecture, write_checkpoint

    folder = tmp_path_factory.mktemp("architectures")

    def build(name: str) -> Path:
        if not (folder / name).exists():
            description = read_architecture(name)
            config = description["files"]["config.json"]
            # Louder than the library's 0.02, which at this width would leave the logits nearly flat.
            loud = {"initializer_range": 0.08}
            text, vision = config.get("text_config", config), config["vision_config"]
            text |= {**_NARROW_TEXT, "num_hidden_layers": 2, **loud}
            vision |= {**_NARROW_VISION[config["model_type"]], "depth": 2, **loud}
            if "fullatt_block_indexes" in vision:
                vision["fullatt_block_indexes"] = [1]  # the other block attends within windows
            if "deepstack_visual_indexes" in vision:
                # What the last layer is given beside its input reaches no later token.
                vision["deepstack_visual_indexes"], text["num_hidden_layers"] = [0, 1], 3
            write_checkpoint(description, folder / name, dtype="float32")
        return folder / name

    yield build
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def load_narrow(narrow: Callable[[str], Path]) -> Callable[..., Any]:
    """Loads a narrow architecture as a policy with weights of its own, under the paper's limit of pixels."""
    from visual_r1.models import ModelSource, load_policy

    def build(name: str, **arguments: Any) -> Any:
        style = "instruct" if name.endswith("instruct") else "base"
        source = ModelSource(name=name, path=str(narrow(name)), style=style, max_pixels=401_408)
        return load_policy(source, **arguments)

    return build


@pytest.fixture(scope="session")
def load_adapted(load_narrow: Callable[..., Any]) -> Callable[..., Any]:
    """The same with adapters on the text's layers of these names, which are not as they began."""
    import torch

    from visual_r1.models import Adapter

    def build(name: str, *, layers: str = "q_proj|k_proj|v_proj|o_proj") -> Any:
        lora = Adapter(rank=4, alpha=8, dropout=0.0, target_modules=rf".*language_model.*\.({layers})")
        policy = load_narrow(name, adapter=lora)
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in policy.model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return policy

    return build


@pytest.fixture(scope="session")
def narrow_policy(load_narrow: Callable[..., Any]) -> Callable[[str], Any]:
    """The same, loaded once: nobody may change its weights."""
    return cache(load_narrow)


@pytest.fixture(scope="session")
def example() -> Callable[..., Example]:
    """Builds a question about images of the sizes given, each a gradient: equal patches would hide a wrong order."""

    def build(*sizes: tuple[int, int], question: str = "Which is nearer? (A) the cup (B) the plate") -> Example:
        shades = (Image.linear_gradient("L").point(lambda level, shade=40 * n: (level + shade) % 256) for n in range(9))
        images = tuple(shade.resize(size).convert("RGB") for size, shade in zip(sizes, shades, strict=False))
        return Example(
            id=str(sizes), images=images, question=question, choices=("cup", "plate"), solution="A", category="Depth"
        )

    return build
