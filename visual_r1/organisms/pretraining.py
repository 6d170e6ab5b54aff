"""From random weights to nano-base: see, locate, exercise, then exercise and talk, each for a number of steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from visual_r1.datasets.spatial import draw_split_scene
from visual_r1.organisms.corpus import Mixture, ask_any, caption, coordinates, dialogue, exercise
from visual_r1.organisms.forward import FastForward, Head, to_patches
from visual_r1.organisms.questions import Question
from visual_r1.organisms.scenes import NANO, Scene, World
from visual_r1.organisms.tokenizer import END_OF_TEXT, END_OF_TURN, IMAGE_PAD
from visual_r1.prompts import PROMPT_STYLES, PromptStyle

_ADDRESSEE = "User:"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides nano's weights, the seed aside. Steps are counted, never timed, so a build repeats."""

    vision_steps: int = 400
    """Supervised steps of the vision tower: next-token training alone does not ground words in pixels in minutes."""
    coordinate_steps: int = 220
    """Texts that name each object's cell; everything later stands on reading these numbers."""
    exercise_steps: int = 350
    """Captions and worked exercises."""
    dialogue_steps: int = 750
    """Captions, worked exercises and dialogues."""
    instruct_steps: int = 250
    """Terse right answers under the instruct prompt, for nano-instruct only."""
    vision_scenes: int = 64
    """Scenes a step of the vision warm-up."""
    scenes: int = 16
    """Scenes a step of everything that reads text."""
    trunk_exercises_per_scene: int = 3
    """Before there are dialogues."""
    exercises_per_scene: int = 2
    """Beside the dialogues."""
    dialogues_per_scene: int = 2
    answers_per_scene: int = 3
    """Questions a scene of the instruct tuning."""
    instruct_looks: float = 0.35
    """Share of the terse answers that say where things are before they answer; the others answer at once."""
    chat_every: int = 10
    """Each tenth step of dialogues is in the chat format, so that nano-instruct does not start from a blank."""
    vision_learning_rate: float = 2e-3
    learning_rate: float = 2e-3
    instruct_learning_rate: float = 5e-4
    constant_share: float = 0.25
    """Share of the branch's steps after which the learning rate falls linearly; the trunk's does not fall."""
    use_bfloat16: bool = True
    """Matrix products in bfloat16 under autocast; weights, attention and loss stay float32."""
    mixture: Mixture = field(default_factory=Mixture)


def with_changes(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """A recipe with some values changed, as typed: ``dialogue_steps=100``, ``mixture.careful=0.04``.

    Raises:
        ValueError: a change is no ``KEY=VALUE``, names nothing, or has a value of another type.
    """
    own: dict[str, Any] = {}
    shares: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        part, values, name = (recipe.mixture, shares, key[8:]) if key.startswith("mixture.") else (recipe, own, key)
        known = [field.name for field in fields(part) if field.name != "mixture"]
        if name not in known:
            raise ValueError(f"{change}: {key!r} is unknown, expected one of {known}")
        kind = type(getattr(part, name))
        try:
            values[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"{change}: {text!r} is no {kind.__name__}") from None
    return replace(recipe, **own, mixture=replace(recipe.mixture, **shares))


_OF_BRANCH = (
    *("dialogue_steps", "instruct_steps", "exercises_per_scene", "dialogues_per_scene", "answers_per_scene"),
    *("chat_every", "constant_share", "instruct_learning_rate", "instruct_looks"),
)
_OF_EXERCISES = ("first_right_of_two", "first_right_of_four", "slip", "second_check")


def trunk_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe, given as `dataclasses.asdict` gives it, that decides a trunk's weights."""
    part = {name: value for name, value in recipe.items() if name not in (*_OF_BRANCH, "mixture")}
    return part | {f"mixture.{name}": recipe["mixture"].get(name) for name in _OF_EXERCISES}


@dataclass(frozen=True)
class Document:
    """A text about a scene of the batch. The loss is on all of it: questions teach to name and to copy."""

    scene: int
    """Index of its scene in the batch."""
    prompt: str
    """What stands between the shared head and the completion; empty for a caption."""
    completion: str
    """With its end token."""
    sees_preamble: bool = True
    """False for captions, which see nothing of the head after the image."""


class Format:
    """A prompt style cut into the head that all questions about a scene share and what follows it."""

    def __init__(self, processor: Qwen2VLProcessor, style: PromptStyle, world: World = NANO) -> None:
        self.tokenizer = processor.tokenizer
        content = [{"type": "image"}, {"type": "text", "text": style.template}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=style.chat_template,
            add_generation_prompt=style.chat_template is None,
            tokenize=False,
        )
        before, self.after = text.split("{question}")
        # An exercise and a dialogue differ in the addressee only, which is therefore no part of the head.
        self.has_addressee = before.rstrip().endswith(_ADDRESSEE)
        if self.has_addressee:
            before = before.rstrip().removesuffix(_ADDRESSEE)
        before = before.replace(IMAGE_PAD, IMAGE_PAD * world.tokens_per_side**2)
        ids = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        image_start = ids.index(self.tokenizer.convert_tokens_to_ids(IMAGE_PAD))
        self.head = Head(tuple(ids), image_start, world.tokens_per_side)

    def prompt(self, question: Question, *, addressee: str = _ADDRESSEE) -> str:
        """The text between the head and the completion."""
        return f"{addressee} {question.text}{self.after}" if self.has_addressee else f"{question.text}{self.after}"


def pretrain(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    *,
    recipe: Recipe,
    seed: int,
    world: World = NANO,
) -> None:
    """Trains a model with random weights into nano-base, in place: the trunk, then the branch."""
    grow_trunk(model, processor, recipe=recipe, seed=seed, world=world)
    branch(model, processor, recipe=recipe, seed=seed, world=world)


def grow_trunk(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    *,
    recipe: Recipe,
    seed: int,
    world: World = NANO,
) -> None:
    """Everything before the first dialogue: bases that differ in how their dialogues answer can share it."""
    warm_up_vision(model, recipe=recipe, seed=seed, world=world)
    read_exercises(model, processor, recipe=recipe, seed=seed, world=world)


def warm_up_vision(model: Qwen2VLForConditionalGeneration, *, recipe: Recipe, seed: int, world: World = NANO) -> None:
    """Teaches each image token what it shows: colour, shape and cells of its object, and its own place."""
    rng = random.Random(f"vision/{seed}")
    forward = FastForward(model)
    sizes = [len(world.colors) + 1, len(world.shapes), *world.num_cells.values(), *(2 * [world.tokens_per_side])]
    # Drawn on the CPU, so that a seed means the same on every device.
    probe = nn.Linear(model.config.text_config.hidden_size, sum(sizes), device="cpu").to(forward.device)
    parameters = [*model.model.visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.vision_learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    bar = tqdm(range(recipe.vision_steps), desc="vision warm-up", mininterval=5)
    for step in bar:
        _set_learning_rate(optimizer, recipe.vision_learning_rate, step, recipe.vision_steps, constant_share=0.6)
        scenes = [draw_split_scene(rng, "pretrain", world) for _ in range(recipe.vision_scenes)]
        labels = torch.stack([_token_labels(scene) for scene in scenes]).to(forward.device)
        with torch.autocast(forward.device.type, torch.bfloat16, enabled=recipe.use_bfloat16):
            guesses = probe(forward.images(to_patches([scene.render() for scene in scenes]))).float().split(sizes, -1)
        loss = torch.stack(
            [F.cross_entropy(g.flatten(0, 1), labels[..., i].flatten()) for i, g in enumerate(guesses)]
        ).sum()
        _update([optimizer], parameters, loss)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def read_exercises(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    *,
    recipe: Recipe,
    seed: int,
    world: World = NANO,
) -> None:
    """Coordinates, then captions and exercises, at a constant learning rate."""
    rng = random.Random(f"trunk/{seed}")
    base = Format(processor, PROMPT_STYLES["base"], world)

    def draw(step: int) -> tuple[Format, list[Scene], list[Document]]:
        scenes = [draw_split_scene(rng, "pretrain", world) for _ in range(recipe.scenes)]
        if step < recipe.coordinate_steps:
            return base, scenes, _coordinate_documents(rng, scenes)
        documents = []
        for index, scene in enumerate(scenes):
            documents.append(_caption_document(rng, index, scene))
            for _ in range(recipe.trunk_exercises_per_scene):
                documents.append(_exercise_document(rng, index, ask_any(rng, scene), base, recipe))
        return base, scenes, documents

    train_on_documents(
        model,
        draw,
        num_steps=recipe.coordinate_steps + recipe.exercise_steps,
        learning_rate=recipe.learning_rate,
        constant_share=1.0,
        use_bfloat16=recipe.use_bfloat16,
        description="trunk",
    )


def branch(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    *,
    recipe: Recipe,
    seed: int,
    world: World = NANO,
) -> None:
    """Captions, exercises and dialogues, in place, from a trunk to nano-base.

    Scenes, questions, captions and exercises are the same for any shares of the ways of answering; each dialogue has a
    random stream of its own, so two bases differ in those dialogues only that are answered in another way.
    """
    rng = random.Random(f"branch/{seed}")
    base = Format(processor, PROMPT_STYLES["base"], world)
    chat = Format(processor, PROMPT_STYLES["instruct"], world)

    def draw(step: int) -> tuple[Format, list[Scene], list[Document]]:
        scenes = [draw_split_scene(rng, "pretrain", world) for _ in range(recipe.scenes)]
        is_chat = step % recipe.chat_every == recipe.chat_every - 1
        documents = []
        for index, scene in enumerate(scenes):
            if not is_chat:
                documents.append(_caption_document(rng, index, scene))
                for _ in range(recipe.exercises_per_scene):
                    documents.append(_exercise_document(rng, index, ask_any(rng, scene), base, recipe))
            for number in range(recipe.dialogues_per_scene):
                question = ask_any(rng, scene)
                text = dialogue(random.Random(f"dialogue/{seed}/{step}/{index}/{number}"), question, recipe.mixture)
                if is_chat:
                    text = f"<think>{text}{END_OF_TURN}"
                format = chat if is_chat else base
                documents.append(Document(index, format.prompt(question), text + END_OF_TEXT))
        return chat if is_chat else base, scenes, documents

    train_on_documents(
        model,
        draw,
        num_steps=recipe.dialogue_steps,
        learning_rate=recipe.learning_rate,
        constant_share=recipe.constant_share,
        use_bfloat16=recipe.use_bfloat16,
        description="branch",
    )


def train_on_documents(
    model: Qwen2VLForConditionalGeneration,
    draw: Callable[[int], tuple[Format, list[Scene], list[Document]]],
    *,
    num_steps: int,
    learning_rate: float,
    constant_share: float,
    use_bfloat16: bool,
    description: str,
) -> None:
    """Next-token training on the completions of the documents that ``draw(step)`` returns."""
    forward = FastForward(model)
    parameters = list(model.parameters())
    optimizers = _optimizers(model)
    bar = tqdm(range(num_steps), desc=description, mininterval=5)
    for step in bar:
        for optimizer in optimizers:
            _set_learning_rate(optimizer, learning_rate, step, num_steps, constant_share=constant_share)
        format, scenes, documents = draw(step)
        with torch.autocast(forward.device.type, torch.bfloat16, enabled=use_bfloat16):
            loss = document_loss(forward, format, scenes, documents)
        _update(optimizers, parameters, loss)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def document_loss(
    forward: FastForward, format: Format, scenes: Sequence[Scene], documents: Sequence[Document]
) -> Tensor:
    """Mean cross-entropy of the documents' tokens; image and preamble are forwarded once a scene, without a loss."""
    tokenizer, head, device = format.tokenizer, format.head, forward.device
    prompts = tokenizer([document.prompt for document in documents], add_special_tokens=False)["input_ids"]
    completions = tokenizer([document.completion for document in documents], add_special_tokens=False)["input_ids"]
    states = forward.head(head, forward.images(to_patches([scene.render() for scene in scenes])))
    order = sorted(range(len(documents)), key=lambda i: len(prompts[i]) + len(completions[i]))
    third = -(-len(order) // 3)
    total, count = torch.zeros((), device=device), 0
    # Three batches of like lengths waste little on padding.
    for batch in (order[:third], order[third : 2 * third], order[2 * third :]):
        if not batch:
            continue
        length = max(len(prompts[i]) + len(completions[i]) for i in batch)
        texts = [prompts[i] + completions[i] for i in batch]
        padded = [text + [tokenizer.pad_token_id] * (length - len(text)) for text in texts]
        ids = torch.tensor(padded, device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        is_text = torch.arange(length, device=device) < lengths[:, None]
        visible = [len(head.ids) if documents[i].sees_preamble else head.image_end for i in batch]
        visible = torch.tensor(visible, device=device)
        owners = torch.tensor([documents[i].scene for i in batch], device=device)
        hidden = forward.documents(states, owners, ids[:, :-1], visible)
        # A document's first word is predicted by the head, which is not asked.
        targets = is_text[:, 1:]
        logits = forward.logits(hidden[targets])
        total = total + F.cross_entropy(logits, ids[:, 1:][targets], reduction="sum")
        count += int(targets.sum())
    return total / count


def _coordinate_documents(rng: random.Random, scenes: Sequence[Scene]) -> list[Document]:
    documents = []
    for index, scene in enumerate(scenes):
        for _ in range(3):
            documents.append(Document(index, "", coordinates(rng, scene) + END_OF_TEXT, sees_preamble=False))
    return documents


def _caption_document(rng: random.Random, index: int, scene: Scene) -> Document:
    return Document(index, "", caption(rng, scene) + END_OF_TEXT, sees_preamble=False)


def _exercise_document(rng: random.Random, index: int, question: Question, format: Format, recipe: Recipe) -> Document:
    prompt = format.prompt(question, addressee="Exercise:")
    return Document(index, prompt, exercise(rng, question, recipe.mixture) + END_OF_TEXT)


def _token_labels(scene: Scene) -> Tensor:
    """Colour, shape and cells of each image token's object, then the token's own row and column: nano ``[16, 6]``.

    Where there is no object the colour is one more class, and shape and cells are not asked (-100).
    """
    world = scene.world
    tokens = torch.arange(world.tokens_per_side**2, device="cpu")
    labels = torch.full((len(tokens), 4 + len(world.num_cells)), -100, device="cpu")
    labels[:, 0] = len(world.colors)
    labels[:, -2] = tokens // world.tokens_per_side
    labels[:, -1] = tokens % world.tokens_per_side
    for token, thing in scene.token_objects().items():
        content = [list(world.colors).index(thing.color), world.shapes.index(thing.shape)]
        labels[token, :-2] = torch.tensor(content + [thing.cell(axis) for axis in world.num_cells], device="cpu")
    return labels


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, where it learns about half again as fast a step; AdamW for all else."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        is_table = "embed" in name
        (vectors if parameter.ndim < 2 else tables if is_table else matrices).append(parameter)
    # This adjustment lets both share a learning rate (arXiv 2502.16982).
    muon = torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": tables, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98))]


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, peak: float, step: int, num_steps: int, *, constant_share: float
) -> None:
    """Fifty steps of warm-up, then constant, then a linear fall to 3 % of the peak."""
    done = step / num_steps
    fall = 1.0 if done < constant_share else max(0.03, (1 - done) / (1 - constant_share))
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1.0, (step + 1) / 50) * fall


def _update(optimizers: Sequence[torch.optim.Optimizer], parameters: list[nn.Parameter], loss: Tensor) -> None:
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
