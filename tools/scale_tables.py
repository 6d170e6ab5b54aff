"""Writes the tables of docs/scale.md: ``python tools/scale_tables.py``. All of it is arithmetic; nothing runs on a GPU.

Memory is `visual_r1.memory`'s, for composed configurations. Speed is a bound: decoding reads every weight of the
language model and all keys and values once a token, and an update multiplies each token with each weight so many times,
those of a prompt once for its group where the model's prompts can be shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from visual_r1 import memory
from visual_r1.architectures.checkpoints import read_architecture
from visual_r1.config import compose_config, resolve

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
_BLOCK = re.compile(r"(<!-- (\w+): .*? -->\n).*?(<!-- /\w+ -->)", re.DOTALL)

_GPU_BYTES = 80 * 10**9
_BYTES_PER_SECOND = 3.35e12
"""Of an H100 SXM's memory, by NVIDIA's data sheet."""
_FLOPS = 989e12
"""Of the same in bfloat16 without sparsity."""
_SHARE = 0.4
"""Of these, that a well-fed training step of this size reaches; ours is an assumption."""

_LORA = "scale=gpu adapter=lora model.dtype=bfloat16 scale.micro_batch_size=2"
ROWS = {
    "Qwen2-VL-2B": (
        "scale=gpu",
        "scale=gpu rollout=vllm_colocate",
        f"{_LORA} scale.rollout_batch_size=16",
        "scale=paper",
        "scale=paper distributed.num_processes=8 rollout=vllm_colocate",
        "scale=paper distributed=zero3",
    ),
    "Qwen2-VL-7B": (
        _LORA,
        "scale=paper distributed.num_processes=8",
        "scale=paper distributed=zero3 distributed.num_processes=8",
        "scale=paper distributed=zero3 distributed.num_processes=8 rollout=vllm_colocate",
        "scale=paper distributed=zero3 distributed.num_processes=16 distributed.num_nodes=2 rollout=vllm_colocate "
        "scale.prompts_per_step=16",
    ),
    "Qwen3-VL-8B": ("scale=paper distributed=zero3 distributed.num_processes=8 rollout=vllm_colocate",),
}


def architecture(name: str) -> dict[str, Any]:
    """The ``config.json`` of a model of the tables, the larger ones made from the 2B's of their kind."""
    kind = "qwen3_vl_2b_instruct" if name.startswith("Qwen3") else "qwen2_vl_2b"
    config = deepcopy(read_architecture(kind)["files"]["config.json"])
    if name == "Qwen3-VL-8B":
        text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
        config["text_config"] |= {**text, "tie_word_embeddings": False}
        config |= {"tie_word_embeddings": False}
        config["vision_config"] |= {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
        config["vision_config"] |= {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]}
    if name == "Qwen2-VL-7B":  # whose vision tower is the 2B's
        config |= {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}
        config |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
        config["vision_config"] |= {"hidden_size": 3584}
    return config


def plans() -> Iterator[tuple[str, str, memory.Shape, memory.Plan]]:
    """Each row's model and command, its shape and its plan."""
    for name, rows in ROWS.items():
        shape = memory.shape_of(architecture(name))
        for row in rows:
            yield name, row, shape, memory.plan_of(resolve(compose_config(row.split())), shape)


def memory_table() -> str:
    """GB on each GPU, and what vLLM finds room for on one of 80 GB."""
    lines = [
        "| model | `python run.py ...` | GPUs | weights | float32 copy, moments | reference | gradients, buffers | "
        "forward and backward | **update** | **rollout** | vLLM's room, 80 GB |",
        f"| --- | --- {'| ---: ' * 9}|",
    ]
    for name, row, shape, plan in plans():
        stages = {stage.name: stage for stage in memory.stages(shape, plan)}
        parts = stages["update"].parts
        named = {
            "weights": ("weights",),
            "state": ("float32 weights", "optimizer"),
            "reference": ("reference policy",),
            "gradients": ("gradients", "float32 gradients", "buffers of processes"),
        }
        sums = [sum(parts.get(one, 0) for one in each) for each in named.values()]
        sums.append(stages["update"].total - sum(sums))
        totals = [stages["update"].total, stages["rollout"].total]
        room = "-"
        if plan.engine == "vllm_colocate":
            room = f"{memory.room_for_vllm(shape, plan, device_bytes=_GPU_BYTES) // 1000:,}k tokens"
        cells = [name, f"`{row}`", str(plan.num_processes), *map(_gb, [*sums, *totals])]
        lines.append(f"| {' | '.join([*cells, room])} |")
    return "\n".join(lines) + "\n"


def speed_table() -> str:
    """Bounds for one H100, from what is read and multiplied."""
    lines = [
        "| model | decoding, 1 completion | 8 | 64 | update of 64 completions | of which KL's reference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ROWS:
        shape = memory.shape_of(architecture(name))
        plan = memory.plan_of(resolve(compose_config(["scale=gpu"])), shape)
        length = plan.prompt_tokens + plan.completion_tokens
        read = 2 * (shape.num_parameters - shape.num_vision)
        rates = []
        for batch in (1, 8, 64):
            # Half of its completion has been written on average.
            cached = shape.kv_bytes(
                num_tokens=batch * (length - plan.completion_tokens // 2), key_bytes=2, value_bytes=2
            )
            rates.append(f"{batch * _BYTES_PER_SECOND / (read + cached):,.0f} tokens/s")
        tokens = 64 * length
        if name.startswith("Qwen2"):  # a prompt but its last token once for its eight completions
            tokens = 8 * (plan.prompt_tokens - 1) + 64 * (plan.completion_tokens + 1)
        forward = 2 * tokens * shape.num_parameters / (_SHARE * _FLOPS)
        # Forward, again under gradient checkpointing, backward twice; the reference forward.
        lines.append(f"| {' | '.join([name, *rates, f'{5 * forward:.1f} s', f'{forward:.1f} s'])} |")
    return "\n".join(lines) + "\n"


TABLES = {"memory": memory_table, "speed": speed_table}


def with_tables(text: str) -> str:
    """The page with its tables computed anew."""
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
