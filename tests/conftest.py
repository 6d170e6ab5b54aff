"""What several test modules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an untrained nano, "base" or "instruct": real architecture and processor, random weights."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def build(kind: str) -> Path:
        path = folder / f"nano-{kind}"
        if not path.exists():
            _write_checkpoint(path, end_token={"base": "<|endoftext|>", "instruct": "<|im_end|>"}[kind])
        return path

    return build


def _write_checkpoint(folder: Path, *, end_token: str) -> None:
    import torch

    from visual_r1.organisms.model import build_model, build_processor
    from visual_r1.organisms.tokenizer import build_tokenizer

    processor = build_processor(build_tokenizer(eos_token=end_token))
    model = build_model(processor.tokenizer, seed=0)
    with torch.no_grad():
        # Louder than the embedding, or the tied head would say the last token again; nearly flat logits would hide
        # errors behind ties; and without a likely end token no completion would end.
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "embed_tokens" not in name:
                weight.mul_(3)
        model.model.language_model.norm.weight.mul_(4)
        model.get_input_embeddings().weight[processor.tokenizer.eos_token_id].mul_(3)
    # An instruct checkpoint may end on either token, as Qwen2-VL's does.
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def load(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Loads an untrained nano as a policy with weights of its own, to be changed at will."""
    from visual_r1.models import ModelSource, load_policy

    def build(kind: str = "base", **arguments: Any) -> Any:
        return load_policy(ModelSource(name=kind, path=str(checkpoint(kind)), style=kind), **arguments)

    return build


@pytest.fixture(scope="session")
def policies(load: Callable[..., Any]) -> Mapping[str, Any]:
    """Both untrained nanos by name; nobody may change their weights."""
    return {kind: load(kind) for kind in ("base", "instruct")}


class Recorder:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, Any]] = {}
        self.rollouts: dict[tuple[int, str], list[Any]] = {}

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        self.steps.setdefault(step, {}).update(values)

    def log_rollouts(self, rows: Sequence[Any], *, step: int, name: str = "train") -> None:
        self.rollouts[step, name] = list(rows)


@pytest.fixture(scope="session")
def make_context(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Builds what a method trains with, a `Recorder` as its tracker; keywords replace what stands here."""
    from visual_r1.datasets.spatial import Spatial
    from visual_r1.methods.training import TrainingContext
    from visual_r1.metrics.accuracy import Accuracy
    from visual_r1.metrics.groups import Groups
    from visual_r1.metrics.length import Length
    from visual_r1.metrics.reflection import Reflection
    from visual_r1.probe import Probe
    from visual_r1.rewards.accuracy import ChoiceAccuracy
    from visual_r1.rewards.weighted import WeightedReward
    from visual_r1.rollout.engine import Sampling
    from visual_r1.rollout.transformers import TransformersEngine
    from visual_r1.run_folder import RunFolder

    def build(**replaced: Any) -> TrainingContext:
        engine = TransformersEngine(batch_size=64)
        reflection = Reflection(phrases=("wait",))
        rewards = (WeightedReward(name="accuracy", weight=1.0, function=ChoiceAccuracy()),)
        arguments: dict[str, Any] = {
            "examples": Spatial(split="train", size=64),
            "rewards": rewards,
            "metrics": (Accuracy(), Length(), Groups(), reflection),
            "engine": engine,
            "probe": Probe(
                examples=Spatial(split="probe", size=2),
                engine=engine,
                sampling=Sampling(max_completion_length=4),
                metrics=(Accuracy(), Length(), reflection),
                rewards=rewards,
                every_steps=2,
            ),
            "tracker": Recorder(),
            "folder": RunFolder(tmp_path_factory.mktemp("run")),
            "seed": 0,
            "save_every_steps": 1000,
            "show_every_steps": 1000,
            "rollouts_every_steps": 1,
            "keyword_hits": reflection.find,
        }
        return TrainingContext(**{**arguments, **replaced})

    return build


@pytest.fixture(scope="session")
def trl_arguments() -> Callable[..., dict[str, Any]]:
    """The node ``method.trl`` of one step of GRPO on short completions, by plain gradient descent."""

    def build(**replaced: Any) -> dict[str, Any]:
        arguments = {
            "loss_type": "grpo",
            "scale_rewards": "group",
            "beta": 0.0,
            "num_generations": 4,
            "max_completion_length": 8,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "optim": "sgd",  # Adam's first step is the gradient's sign, which rounding decides where it is nearly 0
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "max_steps": 1,
            "bf16": False,
        }
        return {**arguments, **replaced}

    return build
