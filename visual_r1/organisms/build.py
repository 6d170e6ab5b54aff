"""Makes a trunk, a base and an instruct model from nothing, of nano or of micro."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from visual_r1 import provenance
from visual_r1.files import read_json, write_json
from visual_r1.organisms import model as architectures
from visual_r1.organisms import scenes
from visual_r1.organisms.instruct import tune
from visual_r1.organisms.model import Architecture, build_model, build_processor, set_end_token
from visual_r1.organisms.pretraining import Recipe, branch, grow_trunk, trunk_recipe
from visual_r1.organisms.scenes import World
from visual_r1.organisms.tokenizer import END_OF_TEXT, END_OF_TURN, build_tokenizer

RECORD = "organism.json"
"""Beside the weights: the recipe, the seed and the code version that made them."""
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Organism:
    """What is seen, by a net of which sizes, and how it is trained."""

    world: World
    architecture: Architecture
    recipe: Recipe

    @property
    def name(self) -> str:
        """What its folders begin with."""
        return self.world.name


NANO = Organism(world=scenes.NANO, architecture=architectures.NANO, recipe=Recipe())
MICRO = Organism(
    world=scenes.MICRO,
    architecture=architectures.MICRO,
    # Untried: chosen by the arithmetic of docs/organisms.md, not by a build.
    recipe=Recipe(
        vision_steps=1500,
        coordinate_steps=600,
        exercise_steps=1000,
        dialogue_steps=1800,
        instruct_steps=300,
        vision_learning_rate=1e-3,
        learning_rate=1e-3,
    ),
)
ORGANISMS = {organism.name: organism for organism in (NANO, MICRO)}


def build_trunk(
    out: Path,
    *,
    seed: int = 0,
    num_threads: int = 1,
    device: str = "cpu",
    recipe: Recipe | None = None,
    organism: Organism = NANO,
) -> Path:
    """Writes ``out/nano-trunk`` (or ``micro-trunk``): it sees and reads and has heard no dialogue.

    Args:
        out: The parent folder; made if need be.
        seed: Decides the weights, together with the recipe and the number of threads.
        num_threads: Threads of torch; sums in another order give weights that differ in their last digits. Threads
            that outnumber the free cores wait for each other: on a busy machine 1 is up to 25 times faster than 2.
        device: Where it is trained, as torch names it; another device sums in another order, too.
        recipe: None is the organism's own recipe.
        organism: Which one.

    Raises:
        FileExistsError: the folder is there already; checked before any work, and nothing is overwritten.
        ValueError: there is no such device here.
    """
    recipe = recipe or organism.recipe
    _check_device(device)
    folder = out / f"{organism.name}-trunk"
    _refuse_existing(folder)
    torch.set_num_threads(num_threads)
    start = time.monotonic()
    processor = build_processor(build_tokenizer(eos_token=END_OF_TEXT, world=organism.world))
    model = build_model(processor.tokenizer, seed=seed, architecture=organism.architecture).to(device)
    grow_trunk(model, processor, recipe=recipe, seed=seed, world=organism.world)
    _write(
        folder, model, processor, _record(organism, recipe, seed, num_threads, device, minutes=_minutes_since(start))
    )
    return folder


def build(
    out: Path,
    *,
    seed: int = 0,
    num_threads: int = 1,
    device: str = "cpu",
    recipe: Recipe | None = None,
    trunk: Path | None = None,
    with_instruct: bool = True,
    organism: Organism = NANO,
) -> list[Path]:
    """Writes ``nano-base`` and, unless told not to, ``nano-instruct`` (or micro's) into ``out``, each with its record.

    Args:
        out: The parent folder; made if need be.
        seed: As for `build_trunk`.
        num_threads: As for `build_trunk`.
        device: As for `build_trunk`; the trunk may come from another one.
        recipe: None is the organism's own recipe.
        organism: Which one.
        trunk: What `build_trunk` has written, to branch from; None grows one.
        with_instruct: Whether to tune nano-instruct from the base.

    Returns:
        The folders.

    Raises:
        FileExistsError: one of the folders is there already; checked before any work, and nothing is overwritten.
        ValueError: the trunk is none, another seed or recipe made it, or there is no such device here.
    """
    recipe = recipe or organism.recipe
    _check_device(device)
    folders = [out / f"{organism.name}-base", *([out / f"{organism.name}-instruct"] if with_instruct else [])]
    for folder in folders:
        _refuse_existing(folder)
    torch.set_num_threads(num_threads)
    processor = build_processor(build_tokenizer(eos_token=END_OF_TEXT, world=organism.world))
    start, minutes = time.monotonic(), 0.0
    if trunk is None:
        model = build_model(processor.tokenizer, seed=seed, architecture=organism.architecture).to(device)
        grow_trunk(model, processor, recipe=recipe, seed=seed, world=organism.world)
    else:
        minutes = _check_trunk(trunk, organism, recipe, seed)["minutes"]
        model = Qwen2VLForConditionalGeneration.from_pretrained(trunk).to(device)
    branch(model, processor, recipe=recipe, seed=seed, world=organism.world)
    minutes += _minutes_since(start)
    _write(folders[0], model, processor, _record(organism, recipe, seed, num_threads, device, minutes=minutes))
    if with_instruct:
        start = time.monotonic()
        processor = build_processor(build_tokenizer(eos_token=END_OF_TURN, world=organism.world))
        set_end_token(model, processor.tokenizer)
        tune(model, processor, recipe=recipe, seed=seed, world=organism.world)
        minutes += _minutes_since(start)
        _write(folders[1], model, processor, _record(organism, recipe, seed, num_threads, device, minutes=minutes))
    return folders


def read_record(folder: Path) -> dict[str, Any]:
    """What is known of how an organism was made.

    Raises:
        ValueError: the folder is no organism's, or its record cannot be read.
    """
    try:
        return read_json(folder / RECORD)
    except FileNotFoundError:
        raise ValueError(f"{folder}: has no {RECORD}; expected a folder that `visual-r1 organism` has made") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / RECORD}: {error}") from error


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"device {device}: {' '.join(str(error).split())}; expected one of this machine's") from error


def _record(
    organism: Organism, recipe: Recipe, seed: int, num_threads: int, device: str, *, minutes: float
) -> dict[str, Any]:
    return {
        "organism": organism.name,
        "seed": seed,
        "num_threads": num_threads,
        "device": device,
        "recipe": asdict(recipe),
        "minutes": round(minutes, 2),
        **provenance.version(_ROOT),
    }


def _check_trunk(trunk: Path, organism: Organism, recipe: Recipe, seed: int) -> Mapping[str, Any]:
    record = read_record(trunk)
    # What was built before there were two has no such entry.
    if (name := record.get("organism", NANO.name)) != organism.name:
        raise ValueError(f"{trunk}: a trunk of {name}, asked for is {organism.name}")
    if record["seed"] != seed:
        raise ValueError(f"{trunk}: grown with seed {record['seed']}, asked for is seed {seed}")
    # Compared as they are read back.
    grown, asked = trunk_recipe(record["recipe"]), trunk_recipe(asdict(recipe))
    for name, value in asked.items():
        if grown.get(name) != value:
            raise ValueError(f"{trunk}: grown with {name}={grown.get(name)}, asked for is {name}={value}")
    return record


def _minutes_since(start: float) -> float:
    return (time.monotonic() - start) / 60


def _write(
    folder: Path, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, record: Mapping[str, Any]
) -> None:
    """Writes a model folder under a temporary name and renames it when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        model.save_pretrained(whole)
        processor.save_pretrained(whole)
        write_json(whole / RECORD, record)
        # A rename onto an empty folder would succeed.
        _refuse_existing(folder)
        os.rename(whole, folder)


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists; move it away or build elsewhere")
