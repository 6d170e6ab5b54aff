"""One batch of given rollouts, learned from by stock trl and by our trainer.

Stock is ``trl.GRPOTrainer`` itself, with nothing overridden; a rollout function hands it the same completions.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from visual_r1.config import build, compose_config
from visual_r1.examples import Example, Rollout
from visual_r1.files import read_json
from visual_r1.methods.grpo import Grpo, RolloutGrpoTrainer
from visual_r1.methods.training import TrainingContext, training_rows
from visual_r1.models import ModelSource, Policy, load_policy
from visual_r1.probe import Probe
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import RolloutEngine, Sampling, to_rollout
from visual_r1.run_folder import RunFolder
from visual_r1.update_timing import GivenRollouts

FLAGS: Mapping[str, str] = {
    "shared_prefix": "false",
    "encode_once": "false",
    "keep_groups": "false",
    "trim_padding": "false",
    "tokens_per_micro_batch": "null",
    "skip_zero_advantage": "false",
    "skip_old_logps": "false",
}
"""The flags of our step, each with the value at which it is trl's."""
PIXELS_PER_TOKEN = 28


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is learned from."""

    model: str
    """``nano`` or ``28M``."""
    image_tokens: tuple[int, ...]
    """Of each prompt's image."""
    text_tokens: int = 100
    """Of each prompt, beside its image's."""
    lengths: tuple[int, ...]
    """Tokens of the completions, prompt after prompt."""
    group: int
    micro_batch: int
    """Completions in one forward and backward pass."""
    longest: int
    """Tokens that a completion may have."""
    beta: float = 0.0
    zero_advantage: float = 0.0
    """The share of groups whose completions are all worth the same."""
    note: str = ""

    @property
    def prompts(self) -> int:
        """Groups in the batch."""
        return len(self.lengths) // self.group

    @property
    def name(self) -> str:
        """What is measured, in words."""
        images = "/".join(map(str, dict.fromkeys(self.image_tokens)))
        size = f"{self.prompts} x {self.group}" if self.prompts > 1 else str(self.group)
        words = f"{self.model}, {images} image + {self.text_tokens} text tokens, {size} x {self.longest}"
        return f"{words}, {self.note}" if self.note else words


def lengths(longest: int, count: int) -> tuple[int, ...]:
    """Lengths of completions from half of the longest to the longest, evenly spread and in random order."""
    spread = [0.5 + 0.5 * number / (count - 1) for number in range(count)] if count > 1 else [0.75]
    drawn = [round(longest * share) for share in spread]
    random.Random(0).shuffle(drawn)
    return tuple(drawn)


def grid(num_tokens: int) -> tuple[int, int]:
    """Width and height, in tokens, of the image nearest to a square."""
    height = next(side for side in range(isqrt(num_tokens), 0, -1) if num_tokens % side == 0)
    return num_tokens // height, height


class Questions(Sequence[Example]):
    """Prompts with images and texts of given sizes."""

    def __init__(self, policy: Policy, image_tokens: Sequence[int], *, text_tokens: int) -> None:
        self._image_tokens = image_tokens
        bare = self._example(0, "a")
        missing = text_tokens + image_tokens[0] - policy.prompt_length(bare)
        if missing < 0:
            raise ValueError(f"text_tokens={text_tokens}: the prompt around the question has {text_tokens - missing}")
        self._question = " ".join(["a"] * (1 + missing))
        length = policy.prompt_length(self[0])
        if length != text_tokens + image_tokens[0]:
            raise ValueError(f"a prompt has {length} tokens, expected {text_tokens + image_tokens[0]}")

    def __len__(self) -> int:
        return len(self._image_tokens)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._example(index, self._question)

    def _example(self, index: int, question: str) -> Example:
        size = [PIXELS_PER_TOKEN * side for side in grid(self._image_tokens[index])]
        image = Image.linear_gradient("L").resize((size[0], size[1])).convert("RGB")
        return Example(
            id=f"update/{index}",
            images=(image,),
            question=question,
            choices=("cup", "plate"),
            solution="A",
            category="Depth",
        )


@dataclass(frozen=True)
class Score:
    """A reward at random, by the words; the same for all completions of the first prompts."""

    num_equal: int

    def __call__(self, rollout: Rollout) -> float:
        number = int(rollout.example.id.rpartition("/")[2])
        return 0.5 if number < self.num_equal else zlib.crc32(rollout.completion.encode()) / 2**32


class Silent:
    """A tracker that keeps nothing."""

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Forgets numbers."""

    def log_rollouts(self, rows: Sequence[Any], *, step: int, name: str = "train") -> None:
        """Forgets rollouts."""

    def finish(self) -> None:
        """Has nothing to end."""


def make_context(
    folder: Path, *, examples: Sequence[Example], rewards: Sequence[WeightedReward], engine: RolloutEngine
) -> TrainingContext:
    """What a trainer needs beside its method; its probe is one token of one prompt."""
    probe = Probe(
        examples=[examples[0]],
        engine=GivenRollouts(lengths=(1,)),
        sampling=Sampling(max_completion_length=1),
        metrics=(),
        rewards=rewards,
        every_steps=10**6,
    )
    return TrainingContext(
        examples=examples,
        rewards=rewards,
        metrics=(),
        engine=engine,
        probe=probe,
        tracker=Silent(),
        folder=RunFolder(folder),
        seed=0,
        save_every_steps=10**6,
        show_every_steps=10**6,
        rollouts_every_steps=10**6,
        keyword_hits=lambda completion: (),
    )


def method_of(overrides: Sequence[str]) -> Grpo:
    """The method that the command line would compose."""
    method = build(compose_config(["method=grpo", *overrides]).method)
    method.check()
    return method


def stock_flags() -> list[str]:
    """Overrides with which our trainer takes trl's step."""
    return [f"method.{flag}={value}" for flag, value in FLAGS.items()]


def stock_trainer(
    policy: Policy, context: TrainingContext, method: Grpo, *, given: GivenRollouts | None = None
) -> GRPOTrainer:
    """Trl's trainer as a user would make it: our prompts, rewards and batch sizes, and nothing overridden.

    Args:
        policy: trained.
        context: its examples and rewards.
        method: its arguments of trl.
        given: completions to learn from; None lets trl sample them.
    """

    def row(example: Example) -> dict[str, Any]:
        text = policy.style.text(example)
        return {"prompt": [{"role": "user", "content": text}], "images": list(example.images), "example": example}

    ends = set(policy.end_token_ids)

    def reward(weighted: WeightedReward) -> Callable[..., list[float]]:
        def scores(*, example: Any, completion_ids: Any, **_columns: Any) -> list[float]:
            return [
                weighted.function(to_rollout(policy, one, ids, is_truncated=ids[-1] not in ends))
                for one, ids in zip(example, completion_ids, strict=True)
            ]

        scores.__name__ = weighted.name
        return scores

    def hand_out(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        assert given is not None
        with given.serving(policy) as sampler:
            size = trainer.args.num_generations
            groups = sampler.generate(
                prompts[::size], num_generations=size, sampling=Sampling(max_completion_length=1), seed=0
            )
        completions = [completion for group in groups for completion in group]
        return {
            "prompt_ids": [list(one.prompt_ids) for one in completions],
            "completion_ids": [list(one.token_ids) for one in completions],
            "logprobs": [list(one.logps) for one in completions],
        }

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is marked experimental; trl is pinned
    trainer = GRPOTrainer(
        model=policy.model,
        args=method.config(context),
        reward_funcs=[reward(one) for one in context.rewards],
        train_dataset=training_rows(policy, context.examples, row),
        processing_class=policy.processor,
        **({} if given is None else {"rollout_func": hand_out}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def our_trainer(policy: Policy, context: TrainingContext, method: Grpo) -> RolloutGrpoTrainer:
    """Ours."""
    return RolloutGrpoTrainer(policy=policy, context=context, method=method)


class Bench:
    """Trainers of cases, around models of their own, in a folder that goes with it."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self._models = models
        self._stack = ExitStack()
        self._folder = Path()

    def __enter__(self) -> Bench:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="step-")))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.close()

    def config(self, model: str) -> Mapping[str, Any]:
        """The content of a model's ``config.json``."""
        return read_json(self._models[model] / "config.json")

    @property
    def folder(self) -> Path:
        """A place for what goes with this."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def policy(self, model: str, *, freeze: Sequence[str] = ()) -> Policy:
        """Weights as they were drawn, some of them frozen."""
        return load_policy(ModelSource(name=model, path=str(self._models[model]), style="base"), freeze=freeze)

    def trainer(self, case: Case, side: str, *, overrides: Sequence[str] = (), needs_correction: bool = False) -> Any:
        """A trainer of a case.

        Args:
            case: what it learns from.
            side: ``stock`` is trl's trainer; ``ours`` ours, as it is configured when nobody says otherwise.
            overrides: further ones of our configuration.
            needs_correction: whether the given completions are said to come from another engine.
        """
        policy = self.policy(case.model)
        given = GivenRollouts(lengths=case.lengths, needs_correction=needs_correction)
        num_equal = round(case.zero_advantage * case.prompts)
        context = make_context(
            self.folder,
            examples=Questions(policy, case.image_tokens, text_tokens=case.text_tokens),
            rewards=(WeightedReward(name="score", weight=1.0, function=Score(num_equal)),),
            engine=given,
        )
        # trl refuses groups of one: two of them then, of which one is a micro-batch.
        group = max(2, case.group)
        method = method_of(
            [
                *(f"scale.prompts_per_step={case.prompts}", f"scale.num_generations={group}"),
                *(f"scale.micro_batch_size={case.micro_batch}", f"scale.max_completion_length={case.longest}"),
                *(f"method.trl.beta={case.beta}", "scale.num_threads=null"),
                *(stock_flags() if side == "stock" else ()),
                *overrides,
            ]
        )
        if side == "stock":
            return stock_trainer(policy, context, method, given=given)
        return our_trainer(policy, context, method)


@dataclass
class Computed:
    """How many tokens and patches of images went through a model, padding included."""

    tokens: int = 0
    patches: int = 0


@contextmanager
def counting(model: Any) -> Generator[Computed]:
    """Counts what passes the language model and the vision tower of a model while the block runs."""
    computed = Computed()

    def of_text(_module: Any, args: Any, kwargs: Any) -> None:
        given = kwargs.get("inputs_embeds")
        computed.tokens += given.shape[0] * given.shape[1]

    def of_vision(_module: Any, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states", kwargs.get("pixel_values"))
        computed.patches += given.shape[0]

    inner = model.model
    hooks = [
        inner.language_model.register_forward_pre_hook(of_text, with_kwargs=True),
        inner.visual.register_forward_pre_hook(of_vision, with_kwargs=True),
    ]
    try:
        yield computed
    finally:
        for hook in hooks:
            hook.remove()


class Clock(TrainerCallback):
    """Notes how long each step took after the first, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._ended: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Reads the clock."""
        now = time.perf_counter()
        if self._ended is not None:
            self.seconds.append(now - self._ended)
        self._ended = now


def whole_steps(
    bench: Bench, model: str, side: str, overrides: Sequence[str], *, num_steps: int
) -> list[dict[str, float]]:
    """Seconds and completion tokens of each step but the first, from the weights as they lie on disk."""
    common = ["scale.num_threads=null", f"scale.max_steps={num_steps}", *overrides]
    cfg = compose_config(["method=grpo", *common])
    policy = bench.policy(model)
    rewards = tuple(
        WeightedReward(name=str(term), weight=node.weight, function=build(node.function))
        for term, node in cfg.reward.terms.items()
    )
    examples = build(cfg.dataset.train) if model == "nano" else Questions(policy, (300,) * 64, text_tokens=100)
    context = make_context(bench.folder, examples=examples, rewards=rewards, engine=build(cfg.rollout.engine))
    method = method_of([*common, *(stock_flags() if side == "stock" else ())])
    trainer = (stock_trainer if side == "stock" else our_trainer)(policy, context, method)
    clock = Clock()
    trainer.callback_handler.callbacks.insert(0, clock)  # before the probe, which measures at the last step
    trainer.train()
    lengths = [one["completions/mean_length"] for one in trainer.state.log_history if "completions/mean_length" in one]
    del trainer
    free()
    return [
        {"seconds": seconds, "tokens": length * method.completions_per_step}
        for seconds, length in zip(clock.seconds, lengths[1:], strict=True)
    ]


def free() -> None:
    """Lets go of trainers, which hold themselves in circles."""
    gc.collect()
