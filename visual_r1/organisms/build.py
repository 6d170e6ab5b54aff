"""Makes nano-base and nano-instruct from nothing."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from visual_r1.organisms.card import measure, write_card
from visual_r1.organisms.instruct import tune
from visual_r1.organisms.model import build_model, build_processor, set_end_token
from visual_r1.organisms.pretraining import Recipe, pretrain
from visual_r1.organisms.tokenizer import END_OF_TEXT, END_OF_TURN, build_tokenizer
from visual_r1.prompts import PROMPT_STYLES


def build(
    out: Path, *, seed: int = 0, num_threads: int = 1, recipe: Recipe | None = None, num_examples: int = 600
) -> None:
    """Writes ``out/nano-base`` and ``out/nano-instruct``, each with its processor and its card.

    Args:
        out: The parent folder; made if need be.
        seed: Decides the weights, together with the recipe and the number of threads.
        num_threads: Threads of torch; sums in another order give weights that differ in their last digits. Threads
            that outnumber the free cores wait for each other: on a busy machine 1 is up to 25 times faster than 2.
        recipe: None is nano's own recipe.
        num_examples: Held-out questions that the cards rest on.

    Raises:
        FileExistsError: one of the two folders is there already; checked before any work, and nothing is overwritten.
    """
    for name in ("nano-base", "nano-instruct"):
        _refuse_existing(out / name)
    recipe = recipe or Recipe()
    torch.set_num_threads(num_threads)
    start = time.monotonic()

    base_processor = build_processor(build_tokenizer(eos_token=END_OF_TEXT))
    model = build_model(base_processor.tokenizer, seed=seed)
    pretrain(model, base_processor, recipe=recipe, seed=seed)
    minutes = (time.monotonic() - start) / 60
    abilities = measure(
        model,
        base_processor,
        PROMPT_STYLES["base"],
        num_examples=num_examples,
        num_repeated=min(200, num_examples),
    )
    facts = {"recipe": recipe, "seed": seed, "num_threads": num_threads, "num_parameters": model.num_parameters()}
    _write(out / "nano-base", model, base_processor, write_card("nano-base", abilities, minutes=minutes, **facts))

    start = time.monotonic()
    processor = build_processor(build_tokenizer(eos_token=END_OF_TURN))
    set_end_token(model, processor.tokenizer)
    tune(model, processor, recipe=recipe, seed=seed)
    minutes += (time.monotonic() - start) / 60
    abilities = measure(model, processor, PROMPT_STYLES["instruct"], num_examples=num_examples)
    _write(out / "nano-instruct", model, processor, write_card("nano-instruct", abilities, minutes=minutes, **facts))


def _write(folder: Path, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, card: str) -> None:
    """Writes a model folder under a temporary name and renames it when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        model.save_pretrained(whole)
        processor.save_pretrained(whole)
        (whole / "README.md").write_text(card, encoding="utf-8")
        # A rename onto an empty folder would succeed.
        _refuse_existing(folder)
        os.rename(whole, folder)


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists; move it away or build elsewhere")
