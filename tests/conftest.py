"""What several test modules share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from visual_r1.examples import Example, Rollout

TERMS = Path(__file__).parents[1] / "conf" / "reward" / "term"


@pytest.fixture(scope="session")
def rollout() -> Callable[..., Rollout]:
    """Builds a rollout of one question (solution B, "right"), so that a test shows only what it is about."""
    image = Image.new("RGB", (28, 28))

    def build(
        completion: str,
        *,
        num_tokens: int | None = None,
        num_thought_tokens: int | None = None,
        is_truncated: bool = False,
        prompt_opens_think: bool = False,
        choices: tuple[str, ...] = ("left", "right"),
        solution: str = "B",
        category: str = "Relation",
        example_id: str = "cup",
    ) -> Rollout:
        example = Example(
            id=example_id,
            images=(image,),
            question="Is the cup left or right of the plate?",
            choices=choices,
            solution=solution,
            category=category,
        )
        return Rollout(
            example=example,
            completion=completion,
            num_tokens=len(completion.split()) + 1 if num_tokens is None else num_tokens,
            is_truncated=is_truncated,
            prompt_opens_think=prompt_opens_think,
            num_thought_tokens=num_thought_tokens,
        )

    return build


@pytest.fixture(scope="session")
def build_term() -> Callable[[str], Callable[[Rollout], float]]:
    """Builds the reward of a YAML of conf/reward/term, for completions of at most 100 tokens."""

    def build(term: str) -> Callable[[Rollout], float]:
        function = OmegaConf.load(TERMS / f"{term}.yaml").function
        cfg = OmegaConf.create({"scale": {"max_completion_length": 100}, "function": function})
        OmegaConf.resolve(cfg)
        arguments = dict(cfg.function)
        module, _, name = arguments.pop("_target_").rpartition(".")
        return getattr(import_module(module), name)(**arguments)

    return build
