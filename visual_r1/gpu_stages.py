"""What `gpu_check` does, stage after stage: random weights, a step of training, a saved model, vLLM and DeepSpeed."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import torch
from PIL import Image

from visual_r1 import distributed, memory
from visual_r1.architectures import checkpoints
from visual_r1.config import build, compose_config, resolve
from visual_r1.examples import Example, Rollout
from visual_r1.files import read_json, write_json
from visual_r1.methods.grpo import RolloutGrpoTrainer
from visual_r1.methods.training import TrainingContext
from visual_r1.models import ModelSource, Policy, load_policy, save_policy
from visual_r1.probe import Probe
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import Completion, RolloutEngine, Sampling
from visual_r1.rollout.gathering import whole
from visual_r1.rollout.plain import plain_logps
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import JsonlTracker, Tracker
from visual_r1.update_timing import GivenRollouts, make_batch, update


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is checked, and where its files go."""

    architecture: str
    text_layers: int | None
    vision_depth: int | None
    overrides: tuple[str, ...]
    workspace: Path
    """A folder for checkpoints, which are deleted; at full size they take 40 GB."""


class Questions(Sequence[Example]):
    """Questions about images, larger than any limit if not said otherwise; every second one has two images."""

    def __init__(self, size: int, *, image_size: tuple[int, int] = (1792, 896)) -> None:
        self._size = size
        self._image_size = image_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._size:
            raise IndexError(index)
        gradient = Image.linear_gradient("L").point(lambda level: (level + 40 * index) % 256)
        image = gradient.resize(self._image_size).convert("RGB")
        return Example(
            id=f"gpu_check/{index}",
            images=(image,) if index % 2 == 0 else (image, image.transpose(Image.Transpose.ROTATE_180)),
            question="Which object is nearer to the camera? Select from the following choices.\n(A) cup\n(B) plate",
            choices=("cup", "plate"),
            solution="A",
            category="Depth",
        )


@dataclass(frozen=True)
class Checksum:
    """A reward that differs within a group, whatever random weights write: a step without advantage moves nothing."""

    def __call__(self, rollout: Rollout) -> float:
        return zlib.crc32(rollout.completion.encode()) / 2**32


class Check:
    """The stages, in order; each returns its numbers, or raises."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._checkpoint = options.workspace / "checkpoint"
        self._saved = options.workspace / "model"
        self._trained: Policy | None = None
        self._written: tuple[dict[str, torch.Tensor], Completion] | None = None

    @property
    def stages(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Every stage by name."""
        return {
            "build": self.build,
            "tokenize": self.tokenize,
            "rollout": self.rollout,
            "grpo_step": self.grpo_step,
            "save": self.save,
            "load_again": self.load_again,
            "lora_step": self.lora_step,
            "shared_prefix": self.shared_prefix,
            "budget": self.budget,
            "vllm_colocate": self.vllm_colocate,
            "zero2_step": lambda: self.zero_step("zero2"),
            "zero3_step": lambda: self.zero_step("zero3"),
        }

    def recipe(self, *overrides: str) -> Any:
        """The composed config of ``scale=gpu`` for our checkpoint and one step."""
        style = "instruct" if self._options.architecture.endswith("instruct") else "base"
        ours = [f"model={style}", f"model.path={self._checkpoint}", "method=grpo", "scale=gpu", "scale.max_steps=1"]
        return compose_config([*ours, *self._options.overrides, *overrides])

    def build(self) -> dict[str, Any]:
        """Draws the weights and writes the checkpoint."""
        options = self._options
        checkpoints.build_checkpoint(
            options.architecture,
            self._checkpoint,
            text_layers=options.text_layers,
            vision_depth=options.vision_depth,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        return {"checkpoint_bytes": _bytes_in(self._checkpoint)}

    def tokenize(self) -> dict[str, Any]:
        """Prompts whose images stand at the limit of pixels have the tokens that the grid says."""
        cfg = self.recipe()
        policy = self._load(cfg, dtype="bfloat16")
        examples = [policy.fitted(one) for one in Questions(cfg.scale.prompts_per_step)]
        started = time.perf_counter()
        inputs = encode_prompts(policy, [policy.style.messages(one) for one in examples])
        seconds = time.perf_counter() - started
        counted = (inputs["input_ids"] == policy.model.config.image_token_id).sum(dim=1).tolist()
        expected = [sum(policy.limits.num_tokens(*image.size) for image in one.images) for one in examples]
        _expect(counted == expected, f"image tokens {counted}, expected {expected}")
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        predicted = [policy.prompt_length(one) for one in examples]
        _expect(lengths == predicted, f"prompt lengths {lengths}, expected {predicted}")
        return {
            "image_size": list(examples[0].images[0].size),
            "image_tokens": counted,
            "prompt_tokens": lengths,
            "prompts_per_second": len(examples) / seconds,
        }

    def rollout(self) -> dict[str, Any]:
        """The rollouts of one training step."""
        cfg = self.recipe()
        policy, method, engine = self._load(cfg), build(cfg.method), build(cfg.rollout.engine)
        examples = [policy.fitted(one) for one in Questions(method.prompts_per_step)]
        started = time.perf_counter()
        with engine.serving(policy) as sampler:
            groups = sampler.generate(
                [policy.style.messages(one) for one in examples],
                num_generations=method.trl["num_generations"],
                sampling=method.sampling,
                seed=0,
            )
        seconds = time.perf_counter() - started
        completions = [completion for group in groups for completion in group]
        drawn = {token for completion in completions for token in completion.token_ids}
        _expect(not drawn & set(policy.image_token_ids), "a placeholder of an image was sampled")
        logps = [logp for completion in completions for logp in completion.logps]
        _expect(all(map(math.isfinite, logps)), "a log-probability is not finite")
        return {"completions": len(completions), "tokens": len(logps), "tokens_per_second": len(logps) / seconds}

    def grpo_step(self) -> dict[str, Any]:
        """One step of the paper's recipe, all parameters trained."""
        self._trained, numbers = self._step()
        return numbers

    def save(self) -> dict[str, Any]:
        """Writes the trained policy, or the untrained one where training failed."""
        policy = self._trained or self._load(self.recipe())
        self._trained = None
        self._written = (_samples(policy), _greedy(policy))
        save_policy(policy, self._saved, num_steps=1)
        return {"model_bytes": _bytes_in(self._saved)}

    def load_again(self) -> dict[str, Any]:
        """What was saved is what was in memory."""
        if self._written is None:
            raise RuntimeError("nothing was saved")
        weights, answer = self._written
        cfg = self.recipe()
        policy = load_policy(
            ModelSource(name="saved", path=str(self._saved), max_pixels=cfg.model.max_pixels, dtype=cfg.model.dtype)
        )
        changed = [name for name, values in _samples(policy).items() if not torch.equal(values, weights[name])]
        _expect(not changed, f"weights changed by saving: {changed[:5]}")
        again = _greedy(policy)
        _expect(again.prompt_ids == answer.prompt_ids, "the prompt's tokens changed")
        return {
            # Not 0: trained, the policy computes under bfloat16's autocast; loaded, in its own type.
            "first_logp_difference": abs(again.logps[0] - answer.logps[0]),
            "equal_tokens": _equal(again.token_ids, answer.token_ids),
        }

    def lora_step(self) -> dict[str, Any]:
        """One step of the recipe for 24 GB: adapters on bfloat16 weights."""
        _, numbers = self._step("adapter=lora", "model.dtype=bfloat16", "scale.micro_batch_size=2")
        return numbers

    def shared_prefix(self) -> dict[str, Any]:
        """Updates on one group in bfloat16, its prompt computed once and once for each completion, as trl does."""
        group = self.recipe().scale.num_generations
        one_group = ("scale.prompts_per_step=1", f"scale.micro_batch_size={group}", "method.keep_groups=true")
        cfg = self.recipe("model.dtype=bfloat16", "method.trl.beta=0", *one_group)
        policy, method = self._load(cfg), build(cfg.method)
        with torch.no_grad():
            policy.model.model.language_model.norm.weight.mul_(4)  # random weights find all tokens about equally likely
        folder = RunFolder(self._options.workspace / "run")
        folder.path.mkdir()
        examples = Questions(1, image_size=(560, 420))  # 300 tokens
        context = _context(examples, GivenRollouts(lengths=(1,)), JsonlTracker(folder), folder)
        trainer = RolloutGrpoTrainer(policy=policy, context=context, method=method)
        numbers: dict[str, Any] = {"prompt_tokens": policy.prompt_length(policy.fitted(examples[0]))}
        limit = method.sampling.max_completion_length
        for longest in (max(1, limit * 2 // 7), limit):  # of the recipe's 700 tokens 200, then all
            lengths = tuple(max(1, round(longest * (0.5 + 0.5 * number / (group - 1)))) for number in range(group))
            trainer._context = replace(context, engine=GivenRollouts(lengths=lengths))
            for name, value in {"completion_tokens": sum(lengths), **_compared_updates(trainer)}.items():
                numbers[f"{longest}_tokens/{name}"] = value
        shutil.rmtree(folder.path)
        return numbers

    def budget(self) -> dict[str, Any]:
        """What a step keeps beside a vLLM engine is what the arithmetic says, and leaves the engine room."""
        cfg = self.recipe("rollout=vllm_colocate")
        shape = memory.shape_of(read_json(self._checkpoint / "config.json"))
        plan = memory.plan_of(resolve(cfg), shape)
        on_gpu = torch.cuda.is_available()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        policy, reference = self._load(cfg), self._load(cfg)
        moments = [
            torch.zeros_like(weight, dtype=torch.float32) for weight in policy.model.parameters() for _ in range(2)
        ]
        held = [*policy.model.parameters(), *reference.model.parameters(), *moments]
        counted = sum(tensor.numel() * tensor.element_size() for tensor in held)
        measured = torch.cuda.memory_allocated() - before if on_gpu else counted
        predicted = sum(memory.standing(shape, plan).values())
        _expect(abs(measured - predicted) < 0.02 * predicted, f"{measured} bytes are held, {predicted} were predicted")
        total = torch.cuda.mem_get_info()[1] if on_gpu else psutil.virtual_memory().total
        room = memory.room_for_vllm(shape, plan, device_bytes=total)
        wanted = plan.engine_kv_bytes // shape.kv_bytes(
            num_tokens=1, key_bytes=plan.engine_bytes, value_bytes=plan.engine_bytes
        )
        _expect(room >= wanted, f"vLLM finds room for {room} tokens, {wanted} are asked for")
        stages = {f"{stage.name}_predicted_bytes": stage.total for stage in memory.stages(shape, plan)}
        return {
            "standing_bytes": measured,
            "standing_predicted_bytes": predicted,
            **stages,
            "vllm_room_tokens": room,
            "vllm_wanted_tokens": wanted,
        }

    def vllm_colocate(self) -> dict[str, Any]:
        """A step's rollouts by vLLM, and again with other weights: it must follow them."""
        if importlib.util.find_spec("vllm") is None:
            return {"skipped": "vllm is not installed; pip install '.[vllm]'"}
        return self._alone("rollouts_by_vllm")

    def rollouts_by_vllm(self) -> dict[str, Any]:
        """What `vllm_colocate` does in a process of its own, which gives the engine's memory back."""
        cfg = self.recipe("rollout=vllm_colocate", "model.dtype=bfloat16")
        policy, method, engine = self._load(cfg), build(cfg.method), build(cfg.rollout.engine)
        examples = [policy.fitted(one) for one in Questions(method.prompts_per_step)]
        conversations = [policy.style.messages(one) for one in examples]

        def difference(completion: Completion) -> float:
            plain = plain_logps(policy, conversations[0], completion.token_ids)
            return fmean(abs(one - other) for one, other in zip(plain, completion.logps, strict=True))

        started = time.perf_counter()
        with engine.serving(policy):
            start_seconds = time.perf_counter() - started
        started = time.perf_counter()
        with engine.serving(policy) as sampler:
            push_seconds = time.perf_counter() - started
            started = time.perf_counter()
            groups = sampler.generate(
                conversations,
                num_generations=method.trl["num_generations"],
                sampling=method.sampling,
                seed=0,
            )
            seconds = time.perf_counter() - started
        asleep = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
        first = groups[0][0]
        differences = [difference(first)]
        with torch.no_grad():
            policy.model.model.language_model.norm.weight.mul_(1.5)
        stale = difference(first)
        with engine.serving(policy) as sampler:
            [[again]] = sampler.generate(conversations[:1], num_generations=1, sampling=method.sampling, seed=0)
        differences.append(difference(again))
        # bfloat16 against bfloat16 in another order of sums; stale weights are far beyond it.
        _expect(max(differences) < 0.1, f"vLLM's log-probabilities differ by {differences} on average")
        _expect(stale > 2 * max(differences), "other weights make no difference: the check would not see a lost push")
        num_tokens = sum(len(completion.token_ids) for group in groups for completion in group)
        return {
            "start_seconds": start_seconds,
            "push_seconds": push_seconds,
            "tokens": num_tokens,
            "tokens_per_second": num_tokens / seconds,
            "logp_difference": differences[0],
            "logp_difference_after_push": differences[1],
            "logp_difference_had_it_kept_its_weights": stale,
            **({} if asleep is None else {"free_bytes_while_it_sleeps": asleep}),
        }

    def zero_step(self, name: str) -> dict[str, Any]:
        """One step under DeepSpeed, in one process: nothing is split, and all of it is built."""
        if importlib.util.find_spec("deepspeed") is None:
            return {"skipped": "deepspeed is not installed; pip install '.[deepspeed]'"}
        return self._alone("step_by_deepspeed", name)

    def step_by_deepspeed(self, name: str) -> dict[str, Any]:
        """What `zero_step` does in a process of its own, which is the only one of its group."""
        distributed.join(deepspeed=True)
        one = (f"distributed={name}", "distributed.num_processes=1", "model.dtype=bfloat16")
        _, numbers = self._step(*one)
        if torch.cuda.is_available():
            numbers["peak_gpu_bytes_of_the_process"] = torch.cuda.max_memory_allocated()
        distributed.leave()
        return numbers

    def _alone(self, step: str, *arguments: str) -> dict[str, Any]:
        """What a method of this class returns in a process of its own."""
        free_memory()
        out = self._options.workspace / f"{step}.json"
        options = {**asdict(self._options), "workspace": str(self._options.workspace)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja
        environment = {**os.environ, "PATH": programs, **(group if step == "step_by_deepspeed" else {})}
        command = [sys.executable, "-c", _CHILD, json.dumps(options), str(out), step, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        _expect(result.returncode == 0, f"{step} failed: {result.stderr.strip()[-2000:]}")
        return read_json(out)

    def _load(self, cfg: Any, *, dtype: str | None = None) -> Policy:
        adapter = None if cfg.adapter.lora is None else build(cfg.adapter.lora)
        source = ModelSource(**{str(key): value for key, value in cfg.model.items()})
        return load_policy(source if dtype is None else replace(source, dtype=dtype), adapter=adapter)

    def _step(self, *overrides: str) -> tuple[Policy, dict[str, Any]]:
        cfg = self.recipe(*overrides)
        policy, method = self._load(cfg), build(cfg.method)
        method.check()
        folder = RunFolder(self._options.workspace / "run")
        folder.path.mkdir()
        context = _context(
            Questions(method.prompts_per_step),
            build(cfg.rollout.engine),
            JsonlTracker(folder),
            folder,
            deepspeed=resolve(cfg)["distributed"]["deepspeed"],
        )
        before = _samples(policy)
        try:
            trained, _ = method.train(policy, context)
            curves = next(row for row in folder.read_metrics() if row["step"] == 1)
            checkpoint_bytes = _bytes_in(folder.checkpoints)
        finally:
            shutil.rmtree(folder.path, ignore_errors=True)
        with whole(trained.model):
            after = _samples(trained)
        trainable = {name for name, weight in trained.model.named_parameters() if weight.requires_grad}
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        _expect(bool(moved), "no parameter moved")
        _expect(moved <= trainable, f"frozen, and yet moved: {sorted(moved - trainable)[:5]}")
        kept = {"loss", "grad_norm", "reward", "kl", "completions/mean_length"}
        numbers = {key: curves[key] for key in curves if key in kept or key.startswith(("time/", "parity/"))}
        _expect(all(map(math.isfinite, numbers.values())), f"a number is not finite: {numbers}")
        return trained, {
            "trainable_tensors": len(trainable),
            "moved_tensors": len(moved),
            "training_checkpoint_bytes": checkpoint_bytes,
            **numbers,
        }


_CHILD = "import sys; from visual_r1.gpu_stages import in_child; in_child(*sys.argv[1:])"


def in_child(options: str, out: str, step: str, *arguments: str) -> None:
    """One method of `Check`, asked for by another process; what it returns is written to a file."""
    given = json.loads(options)
    given |= {"overrides": tuple(given["overrides"]), "workspace": Path(given["workspace"])}
    write_json(Path(out), getattr(Check(Options(**given)), step)(*arguments))


def _compared_updates(trainer: RolloutGrpoTrainer) -> dict[str, Any]:
    """Updates on the trainer's one group of completions with the prompt shared and as trl does them, in turns."""
    on_gpu = torch.cuda.is_available()
    off = {"shared_prefix": False, "encode_once": False, "trim_padding": False, "skip_zero_advantage": False}
    ways = {
        "stock": replace(trainer._shortcuts, **off),
        "shared": replace(trainer._shortcuts, shared_prefix=True, encode_once=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int] = {}
    logps: dict[str, torch.Tensor] = {}
    for turn in range(4 if on_gpu else 1):
        for way, shortcuts in ways.items():
            trainer._shortcuts = shortcuts
            trainer.model.zero_grad(set_to_none=True)
            trainer._buffered_inputs = None
            free_memory()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if on_gpu else 0
            make_batch(trainer)
            taken = update(trainer)
            if turn or not on_gpu:  # the first on a GPU also chooses kernels
                seconds[way].append(taken)
            if on_gpu:
                peaks[f"{way}_bytes"] = torch.cuda.max_memory_allocated() - before
            [inputs] = trainer._buffered_inputs or []
            assert trainer._logps is not None
            # Both hold the group's completions in the same order.
            logps[way] = trainer._logps[inputs["completion_mask"].bool()]
            if way == "stock":
                size = len(inputs["completion_ids"])
                logps["halves"] = _logps_in_batches(trainer, inputs, size=size // 2)
                blank = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
                logps["blank"] = _logps_in_batches(trainer, blank, size=size)
    differences = {way: (other - logps["stock"]).abs() for way, other in logps.items()}
    mean = {way: values.mean().item() for way, values in differences.items()}
    # Both are rounding in bfloat16 in another order of sums.
    allowed = max(0.02, 4 * mean["halves"])
    _expect(mean["shared"] < allowed, f"log-probabilities differ by {mean['shared']} on average")
    _expect(mean["blank"] > 2 * mean["shared"], "a blank image makes no difference: the check would see no wrong one")
    medians = {way: median(values) for way, values in seconds.items()}
    return {
        **{f"{way}_seconds": value for way, value in medians.items()},
        "times_faster": medians["stock"] / medians["shared"],
        **peaks,
        "logp_difference": mean["shared"],
        "logp_difference_max": differences["shared"].max().item(),
        "logp_difference_of_stock_in_halves": mean["halves"],
        "logp_difference_of_a_blank_image": mean["blank"],
    }


def _context(
    examples: Sequence[Example],
    engine: RolloutEngine,
    tracker: Tracker,
    folder: RunFolder,
    *,
    deepspeed: Mapping[str, Any] | None = None,
) -> TrainingContext:
    """What one step is trained with."""
    rewards = (WeightedReward(name="checksum", weight=1.0, function=Checksum()),)
    return TrainingContext(
        examples=examples,
        rewards=rewards,
        metrics=(),
        engine=engine,
        probe=Probe(
            examples=Questions(1),
            engine=engine,
            sampling=Sampling(max_completion_length=1),
            metrics=(),
            rewards=rewards,
            every_steps=1,
        ),
        tracker=tracker,
        folder=folder,
        seed=0,
        save_every_steps=1,
        show_every_steps=1,
        rollouts_every_steps=1,
        keyword_hits=lambda completion: (),
        deepspeed=deepspeed,
    )


def _logps_in_batches(trainer: RolloutGrpoTrainer, inputs: Mapping[str, Any], *, size: int) -> torch.Tensor:
    """The log-probabilities of a micro-batch's completions, so many rows at a time."""
    of_images = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            batch_size=size,
            **{name: inputs[name] for name in of_images if name in inputs},
        )
    return logps[inputs["completion_mask"].bool()]


def _greedy(policy: Policy) -> Completion:
    """Eight most likely tokens after a question about one image."""
    question = policy.fitted(Questions(1)[0])
    with TransformersEngine(batch_size=1).serving(policy) as sampler:
        [[completion]] = sampler.generate(
            [policy.style.messages(question)],
            num_generations=1,
            sampling=Sampling(max_completion_length=8, temperature=0.0),
            seed=0,
        )
    return completion


def _samples(policy: Policy) -> dict[str, torch.Tensor]:
    """Some values of each parameter, which tell whether it moved without a second copy of the model."""
    with torch.no_grad():
        return {name: weight.flatten()[:4096].cpu().clone() for name, weight in policy.model.named_parameters()}


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two completions share before they part."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def free_memory() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
