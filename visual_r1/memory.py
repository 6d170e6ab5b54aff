"""How much memory a run needs, by arithmetic: from a model's configuration and a run's, without loading a weight.

What stays through a step (weights, gradients, optimizer, reference policy, keys and values) is counted to the byte and
tested against real models, optimizers and caches. What a layer needs while it works is an estimate from its widths;
what CUDA, gaps between allocations and other libraries take comes on top, about a tenth: `HEADROOM`.

Letters: N parameters, T trained ones, P processes. Bytes everywhere; GB are 10^9 of them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADROOM = 1.1
"""What a device should have, relative to the sum: CUDA's own memory and gaps between allocations."""

KEPT_CHECKPOINTS = 2
"""Checkpoints that lie in a run folder: the newest, and the one before it in case the newest is damaged."""

TEXT_TOKENS = 138
"""Tokens of a prompt beside its image's: the paper's question, choices and instructions."""

_MOMENTS = 8
"""Bytes of AdamW's two moments for a trained parameter; float32, as every trained weight or its copy is."""
_ZERO_BUCKETS = 2 * 500_000_000
"""Values in the two buffers through which ZeRO-2 and ZeRO-3 send gradients (``reduce_bucket_size``, overlapped)."""
_ZERO3_LIVE = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at most while it trains (``stage3_max_live_parameters``)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model decides its memory."""

    num_parameters: int
    num_vision: int
    """Of these, in the vision tower with its merger."""
    num_largest_layer: int
    """Parameters of the module that sharded training gathers at once: a text layer, or the embedding."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    """Tokens that prompt and completion may hold together."""
    kv_values: int
    """Values that a token adds to one layer's keys, and as many to its values."""
    vision_depth: int
    vision_width: int
    pixels_per_patch: int
    patches_per_token: int
    linear: Mapping[str, tuple[int, int]]
    """Inputs and outputs of each linear layer, by its name: what adapters attach to."""

    def num_adapter(self, *, rank: int, target_modules: str) -> int:
        """Parameters of adapters of a rank on the linear layers whose names the expression matches."""
        sizes = [sizes for name, sizes in self.linear.items() if re.fullmatch(target_modules, name)]
        return sum(rank * (inputs + outputs) for inputs, outputs in sizes)

    def kv_bytes(self, *, num_tokens: int, key_bytes: int, value_bytes: int) -> int:
        """Keys and values of so many tokens, over all layers."""
        return num_tokens * self.num_layers * self.kv_values * (key_bytes + value_bytes)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of a model, from its ``config.json``; the model is built without memory."""
    from torch import nn

    from visual_r1.architectures.checkpoints import build_model

    model: Any = build_model(config, dtype="bfloat16", device="meta", seed=0)
    text, vision = model.config.get_text_config(), model.config.vision_config
    core = model.model
    layer = core.language_model.layers[0]
    heads = text.num_key_value_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return Shape(
        num_parameters=_count(model),
        num_vision=_count(core.visual),
        num_largest_layer=max(_count(layer), model.get_input_embeddings().weight.numel()),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        vocab_size=text.vocab_size,
        context_length=text.max_position_embeddings,
        kv_values=heads,
        vision_depth=vision.depth,
        vision_width=getattr(vision, "embed_dim", vision.hidden_size),  # Qwen2-VL calls the merger's width hidden_size
        pixels_per_patch=vision.patch_size**2,
        patches_per_token=vision.spatial_merge_size**2,
        linear={
            name: (module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        },
    )


def num_saved_values(folder: Path) -> int:
    """Values in a folder's safetensors files, from their headers; a tied head is not saved.

    Raises:
        ValueError: a file is damaged.
    """
    return sum(_num_values(path) for path in sorted(folder.glob("*.safetensors")))


def _num_values(path: Path) -> int:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path}: damaged, its header cannot be read; copy or download it again") from error
    total = 0
    for shape in shapes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What of a run decides its memory, on each of its devices."""

    num_processes: int
    is_split: bool
    """Gradients and optimizer are split over the processes (ZeRO-2), or more."""
    is_fully_split: bool
    """The weights are split, too (ZeRO-3, FSDP)."""
    is_deepspeed: bool
    weight_bytes: int
    """Of a parameter as the model keeps it: 4 or 2."""
    compute_bytes: int
    """Of a value in a layer at work: 4, or 2 in bfloat16."""
    is_recomputed: bool
    """Gradient checkpointing: a layer's values are computed again in the backward pass."""
    num_trained: int
    has_adapter: bool
    has_reference: bool
    """Beside the policy there is a second copy, to measure KL to; an adapter's reference is the model without it."""
    micro_batch_size: int
    rollout_batch_size: int
    num_generations: int
    prompt_tokens: int
    completion_tokens: int
    image_pixels: int
    engine: str
    """The name of the rollout engine."""
    engine_sleeps: bool
    """A vLLM engine in the process gives its memory back while the policy is updated."""
    engine_bytes: int
    """Of one value in a vLLM engine."""
    engine_kv_bytes: int
    """What a vLLM engine in the process takes for keys and values."""


def plan_of(config: Mapping[str, Any], shape: Shape, *, image_pixels: int | None = None) -> Plan:
    """The plan of a composed run.

    Args:
        config: the resolved configuration; a chain of methods is planned by its last stage.
        shape: of the model that it names.
        image_pixels: the largest image where the configuration sets no limit: the checkpoint's own.

    Raises:
        ValueError: neither names a limit.
    """
    scale, node = config["scale"], config["distributed"]
    method = list(config["method"]["stages"].values())[-1] if "stages" in config["method"] else config["method"]
    trl = method.get("trl", {})
    lora = config["adapter"]["lora"]
    pixels = config["model"]["max_pixels"] or image_pixels
    if pixels is None:
        raise ValueError("model.max_pixels=null: the checkpoint does not say how large an image may be; set a limit")
    stage = (node["deepspeed"] or {}).get("zero_optimization", {}).get("stage", 0)
    is_fsdp = node.get("fsdp") is not None
    frozen = config["freeze"]["parts"]
    if lora is not None:
        num_trained = shape.num_adapter(rank=lora["rank"], target_modules=lora["target_modules"])
    elif "vision" in frozen:
        num_trained = shape.num_parameters - shape.num_vision
    else:
        num_trained = shape.num_vision if "llm" in frozen else shape.num_parameters
    weight_bytes = {"float32": 4, "bfloat16": 2}[config["model"]["dtype"]]
    compute_bytes = 2 if scale["bf16"] else weight_bytes
    engine = config["rollout"]["engine"]
    engine_bytes = 2 if engine.get("bf16", False) else 4
    kv_bytes = 0
    if config["rollout"]["name"] == "vllm_colocate":
        num_tokens = engine["batch_size"] * min(engine["max_model_length"], shape.context_length)
        kv_bytes = shape.kv_bytes(num_tokens=num_tokens, key_bytes=engine_bytes, value_bytes=engine_bytes)
        if engine["kv_cache_gib"] is not None:
            kv_bytes = int(engine["kv_cache_gib"] * 2**30)
    return Plan(
        num_processes=node["num_processes"],
        is_split=stage >= 1 or is_fsdp,
        is_fully_split=stage == 3 or is_fsdp,
        is_deepspeed=node["deepspeed"] is not None,
        weight_bytes=weight_bytes,
        compute_bytes=compute_bytes,
        is_recomputed=bool(trl.get("gradient_checkpointing", scale["gradient_checkpointing"])),
        num_trained=0 if method["name"] == "eval" else num_trained,
        has_adapter=lora is not None,
        has_reference=bool(trl.get("beta", 0.0)) and lora is None,
        micro_batch_size=method.get("micro_batch_size", 0),
        rollout_batch_size=scale["rollout_batch_size"],
        num_generations=trl.get("num_generations", 1),
        prompt_tokens=TEXT_TOKENS + pixels // (shape.pixels_per_patch * shape.patches_per_token),
        completion_tokens=scale["max_completion_length"],
        image_pixels=pixels,
        engine=config["rollout"]["name"],
        engine_sleeps=bool(engine.get("sleep", False)),
        engine_bytes=engine_bytes,
        engine_kv_bytes=kv_bytes,
    )


@dataclass(frozen=True)
class Stage:
    """What one device holds at the fullest moment of a part of a training step, in bytes."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def stages(shape: Shape, plan: Plan) -> tuple[Stage, ...]:
    """The rollout and, where something is trained, the update."""
    kept = standing(shape, plan)
    rollout = Stage("rollout", {**kept, **_without_zeros(_rollout(shape, plan))})
    if not plan.num_trained:
        return (rollout,)
    # Between two steps there are no gradients.
    update = {**kept, **_gradients(shape, plan), **_update(shape, plan)}
    if plan.engine == "vllm_colocate" and not plan.engine_sleeps:
        update |= _vllm(shape, plan)
    return rollout, Stage("update", _without_zeros(update))


def standing(shape: Shape, plan: Plan) -> dict[str, int]:
    """What stays through a whole step."""
    everyone, trained = shape.num_parameters, plan.num_trained
    share = plan.num_processes if plan.is_split else 1
    weights = everyone * plan.weight_bytes
    master = 0
    if plan.has_adapter:
        weights += 4 * trained  # peft keeps adapters in float32
    elif plan.is_deepspeed and trained:
        master = 4 * trained // share  # also where the weights are float32 themselves
    elif plan.is_fully_split and plan.compute_bytes < 4:
        weights = 4 * everyone  # FSDP2 under bfloat16 keeps float32 weights
    split = plan.num_processes if plan.is_fully_split else 1
    return _without_zeros(
        {
            "weights": weights // split,
            "float32 weights": master,
            "optimizer": _MOMENTS * trained // share,
            "reference policy": everyone * plan.weight_bytes // split if plan.has_reference else 0,
        }
    )


def _gradients(shape: Shape, plan: Plan) -> dict[str, int]:
    share = plan.num_processes if plan.is_split else 1
    size = 4 if plan.has_adapter or (plan.is_fully_split and not plan.is_deepspeed) else plan.weight_bytes
    parts = {"gradients": plan.num_trained * size // share}
    if plan.is_deepspeed:
        if size < 4:
            parts["float32 gradients"] = 4 * plan.num_trained // share  # while the optimizer steps
        parts["buffers of processes"] = min(_ZERO_BUCKETS, 2 * plan.num_trained) * size
    elif plan.num_processes > 1 and not plan.is_split:
        parts["buffers of processes"] = plan.num_trained * size  # DDP copies gradients into buckets
    return parts


def _update(shape: Shape, plan: Plan) -> dict[str, int]:
    """A micro-batch's forward and backward pass."""
    tokens = plan.micro_batch_size * (plan.prompt_tokens + plan.completion_tokens)
    patches = plan.micro_batch_size * plan.image_pixels // shape.pixels_per_patch
    is_autocast = plan.compute_bytes < plan.weight_bytes
    # Queries, keys, values, attention, norms and residual; gate, up, their product and its input.
    layer = tokens * (8 * shape.hidden_size + 4 * shape.intermediate_size) * plan.compute_bytes
    block = patches * 20 * shape.vision_width * plan.compute_bytes
    between = tokens * shape.hidden_size * (4 if is_autocast else plan.compute_bytes)
    between_blocks = patches * shape.vision_width * plan.compute_bytes
    if plan.is_recomputed:
        kept = shape.num_layers * between + shape.vision_depth * between_blocks
        at_work = 2 * max(layer, block)  # with its gradients
    else:
        kept = shape.num_layers * (layer + between) + shape.vision_depth * (block + between_blocks)
        at_work = max(layer, block)
    gathered = 0
    if plan.is_fully_split:
        gathered = min(_ZERO3_LIVE, shape.num_parameters) if plan.is_deepspeed else 2 * shape.num_largest_layer
    return {
        "activations": kept,
        "a layer at work": at_work,
        "autocast's copies": 2 * shape.num_parameters if is_autocast and not plan.is_fully_split else 0,
        "gathered weights": gathered * plan.compute_bytes,
    }


def _rollout(shape: Shape, plan: Plan) -> dict[str, int]:
    """Completions being sampled."""
    if plan.engine == "vllm_colocate":
        return _vllm(shape, plan)
    if plan.engine == "vllm_server":
        return {}
    is_autocast = plan.compute_bytes < plan.weight_bytes and not plan.is_fully_split
    tokens = plan.rollout_batch_size * (plan.prompt_tokens + plan.completion_tokens)
    # Rotated under autocast, keys are float32.
    keys = 4 if is_autocast else plan.compute_bytes
    cache = shape.kv_bytes(num_tokens=tokens, key_bytes=keys, value_bytes=plan.compute_bytes)
    prompts = max(1, plan.rollout_batch_size // plan.num_generations)
    prefill = prompts * plan.prompt_tokens * (8 * shape.hidden_size + 4 * shape.intermediate_size)
    return {
        "keys and values": cache + cache // shape.num_layers,  # a layer's are copied whenever they grow
        "logits": 3 * 4 * plan.rollout_batch_size * shape.vocab_size,
        "a layer at work": prefill * plan.compute_bytes,
        "autocast's copies": 2 * shape.num_parameters if is_autocast else 0,
        "gathered weights": shape.num_parameters * plan.compute_bytes if plan.is_fully_split else 0,
    }


def _vllm(shape: Shape, plan: Plan) -> dict[str, int]:
    return {
        "vLLM's weights": shape.num_parameters * plan.engine_bytes,
        "vLLM's keys and values": plan.engine_kv_bytes,
    }


def room_for_vllm(shape: Shape, plan: Plan, *, device_bytes: int) -> int:
    """Tokens of keys and values that vLLM finds room for in the process, beside the rest of a step."""
    size = plan.engine_bytes
    used = sum(standing(shape, plan).values()) + shape.num_parameters * size
    if not plan.engine_sleeps and plan.num_trained:
        used += sum(_gradients(shape, plan).values()) + sum(_update(shape, plan).values())
    free = int(device_bytes / HEADROOM) - used
    return max(0, free // shape.kv_bytes(num_tokens=1, key_bytes=size, value_bytes=size))


def needed(shape: Shape, plan: Plan) -> int:
    """What each device must have free, in bytes: the fullest stage, and `HEADROOM`."""
    return int(HEADROOM * max(stage.total for stage in stages(shape, plan)))


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a training writes, in bytes."""

    model: int
    """The trained model; adapters are merged into it, in float32."""
    weights: int
    """Of a checkpoint: the model's, or the adapters' alone."""
    state: int
    """The optimizer's, beside them."""

    def total(self, *, num_checkpoints: int) -> int:
        """The model and so many checkpoints."""
        return num_checkpoints * (self.weights + self.state) + self.model


def saved(*, num_parameters: int, num_trained: int, weight_bytes: int, has_adapter: bool, is_deepspeed: bool) -> Saved:
    """What a training by AdamW writes of a model; the arguments are those of `Shape` and `Plan`."""
    model = num_parameters * (4 if has_adapter else weight_bytes)
    return Saved(
        model=model,
        weights=4 * num_trained if has_adapter else model,
        state=(_MOMENTS + (4 if is_deepspeed else 0)) * num_trained,  # DeepSpeed's float32 weights
    )


def disk_needed(shape: Shape, plan: Plan) -> int:
    """What a run writes, in bytes: two checkpoints, of which one may just be being written, and the trained model."""
    if not plan.num_trained:
        return 0
    written = saved(
        num_parameters=shape.num_parameters,
        num_trained=plan.num_trained,
        weight_bytes=plan.weight_bytes,
        has_adapter=plan.has_adapter,
        is_deepspeed=plan.is_deepspeed,
    )
    return written.total(num_checkpoints=KEPT_CHECKPOINTS)


def _without_zeros(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
