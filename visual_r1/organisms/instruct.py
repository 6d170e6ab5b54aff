"""From nano-base to nano-instruct: terse right answers in the chat format, the habit of a tuned model."""

from __future__ import annotations

import random

from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from visual_r1.datasets.spatial import draw_split_scene
from visual_r1.organisms.corpus import ask_any, terse
from visual_r1.organisms.pretraining import Document, Format, Recipe, train_on_documents
from visual_r1.organisms.scenes import NANO, Scene, World
from visual_r1.organisms.tokenizer import END_OF_TURN
from visual_r1.prompts import PROMPT_STYLES


def tune(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    *,
    recipe: Recipe,
    seed: int,
    world: World = NANO,
) -> None:
    """Supervised tuning on ``<think>one sentence</think> <answer>(A)</answer>``, in place."""
    rng = random.Random(f"instruct/{seed}")
    chat = Format(processor, PROMPT_STYLES["instruct"], world)

    def draw(step: int) -> tuple[Format, list[Scene], list[Document]]:
        scenes = [draw_split_scene(rng, "pretrain", world) for _ in range(recipe.scenes)]
        documents = []
        for index in range(len(scenes)):
            for _ in range(recipe.answers_per_scene):
                question = ask_any(rng, scenes[index])
                completion = terse(rng, question, looks=recipe.instruct_looks) + END_OF_TURN
                documents.append(Document(index, chat.prompt(question), completion))
        return chat, scenes, documents

    train_on_documents(
        model,
        draw,
        num_steps=recipe.instruct_steps,
        learning_rate=recipe.instruct_learning_rate,
        # Falls from the first step: the tuning is short and starts from trained weights.
        constant_share=0.0,
        use_bfloat16=recipe.use_bfloat16,
        description="instruct",
    )
