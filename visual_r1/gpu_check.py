"""One step of the paper's recipe at true size: whether it works on this machine, how long it takes, in how much memory.

``make gpu-check``. The weights are random, so nothing is downloaded; configuration, tokenizer, image sizes, lengths and
recipe (``scale=gpu``) are the true ones. A stage that fails is recorded and the others go on.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from visual_r1 import provenance
from visual_r1.architectures import checkpoints
from visual_r1.architectures.tokenizer import read_ranks
from visual_r1.config import build, resolve
from visual_r1.files import write_json
from visual_r1.gpu_stages import Check, Options, free_memory

_ROOT = Path(__file__).resolve().parents[1]
USER_ERROR = 2
_REHEARSAL = (
    *("scale.prompts_per_step=2", "scale.num_generations=2", "scale.micro_batch_size=2", "scale.rollout_batch_size=4"),
    *("scale.max_completion_length=4", "scale.max_pixels=100352"),
)
"""What a machine without a GPU does instead of 8 prompts x 8 completions x 700 tokens on 401,408 pixels."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check; exit code 0 when every stage passed, 1 when one failed, 2 when there is nothing to run on."""
    parser = argparse.ArgumentParser(prog="python -m visual_r1.gpu_check", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, as run.py takes them")
    parser.add_argument("--architecture", default="qwen2_vl_2b", choices=checkpoints.ARCHITECTURES)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses a smaller step")
    parser.add_argument("--text-layers", type=int, help="of the language model (default: all)")
    parser.add_argument("--vision-depth", type=int, help="blocks of the vision tower (default: all)")
    parser.add_argument(
        "--workspace", type=Path, help="where checkpoints go for the time (default: a temporary folder)"
    )
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks" / "gpu", help="where the result goes")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print(
            "gpu-check: no CUDA device here; --device cpu --text-layers 2 --vision-depth 2 rehearses it",
            file=sys.stderr,
        )
        return USER_ERROR
    rehearsal = _REHEARSAL if options.device == "cpu" else ()
    try:
        with tempfile.TemporaryDirectory(dir=options.workspace, prefix="gpu-check-") as workspace:
            checked = Options(
                architecture=options.architecture,
                text_layers=options.text_layers,
                vision_depth=options.vision_depth,
                overrides=(*rehearsal, *options.overrides),
                workspace=Path(workspace),
            )
            report = run(checked, out=options.out)
    except (ValueError, OSError) as error:
        print(f"gpu-check: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return 0 if report["passed"] else 1


def run(options: Options, *, out: Path) -> dict[str, Any]:
    """Runs every stage, writes the report after each, and returns it.

    Raises:
        ValueError: the recipe's overrides do not compose or are out of range, the tokenizer's vocabulary is not
            installed, or the disk is too small.
    """
    check = Check(options)
    recipe = check.recipe()
    build(recipe.method).check()
    read_ranks()
    _check_disk(options)
    record = provenance.record(config=resolve(recipe), data={}, root=_ROOT)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {record['hardware']['cpu']}"
    commit = record["code"]["commit"]
    report: dict[str, Any] = {
        "device": device,
        "commit": commit,
        "is_dirty": record["code"]["is_dirty"],
        "architecture": options.architecture,
        "text_layers": options.text_layers,
        "vision_depth": options.vision_depth,
        "passed": False,
        "stages": [],
        "record": record,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = out / f"{slug}-{(commit or 'no-commit')[:10]}.json"
    print(f"gpu-check: {options.architecture} on {device}")
    for name, stage in check.stages.items():
        report["stages"].append(_timed(name, stage))
        report["passed"] = all(one["passed"] for one in report["stages"])
        write_json(path, report)  # also when the next stage takes the process with it
    print(f"gpu-check: {'passed' if report['passed'] else 'FAILED'}; written to {path}")
    return report


def _timed(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One stage with its time, its peak of memory and its numbers, or its error."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result: dict[str, Any] = {"name": name, "passed": True}
    try:
        numbers = stage()
    except Exception as error:  # whatever it is, the other stages are still worth knowing
        first_line = str(error).strip().partition("\n")[0]
        numbers = {"error": f"{type(error).__name__}: {first_line}", "traceback": traceback.format_exc()}
        result["passed"] = False
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    result["seconds"] = round(time.perf_counter() - started, 2)
    if torch.cuda.is_available():
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        result["peak_gpu_bytes_reserved"] = torch.cuda.max_memory_reserved()
    # Of the whole process so far: the system keeps no peak of a stage.
    result["peak_host_bytes_so_far"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    free_memory()
    peak = result.get("peak_gpu_bytes", result["peak_host_bytes_so_far"]) / 1e9
    shown = {key: _short(value) for key, value in numbers.items() if key != "traceback"}
    print(f"{name:<11} {'ok' if result['passed'] else 'FAILED':<7}{result['seconds']:>8.1f} s {peak:>7.2f} GB  {shown}")
    return {**result, **numbers}


def _check_disk(options: Options) -> None:
    """Refuses a workspace that cannot hold weights, optimizer states and the saved model."""
    description = checkpoints.read_architecture(options.architecture)
    config = checkpoints.with_depth(
        description["files"]["config.json"], text_layers=options.text_layers, vision_depth=options.vision_depth
    )
    model = checkpoints.build_model(config, dtype="bfloat16", device="meta", seed=0)
    # In bytes a parameter: the checkpoint 2, the training's 4 and Adam's moments 8, the saved model 4.
    needed = 18 * sum(parameter.numel() for parameter in model.parameters())
    free = shutil.disk_usage(options.workspace).free
    if free < needed:
        raise ValueError(
            f"{options.workspace}: {needed / 1e9:.0f} GB are needed and {free / 1e9:.0f} free; name another --workspace"
        )


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
