"""Commands that start several processes on whatever machine, and the small runs that they make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "run.py"

# Without a GPU, so that each runs anywhere, and with rounding that is the same on each.
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

PROMPTS, GROUP, STEPS = 4, 4, 3
COMMON = (
    "tracker=none",
    "scale.num_threads=1",
    f"scale.max_steps={STEPS}",
    f"scale.prompts_per_step={PROMPTS}",
    f"scale.num_generations={GROUP}",
    "scale.max_completion_length=8",
    f"scale.sft_steps={STEPS}",
    "scale.sft_examples_per_step=8",
    "scale.train_size=32",
    "scale.probe_size=2",
    "scale.probe_every_steps=10",
    "scale.benchmark_size=4",
    "scale.save_every_steps=2",
    "scale.rollouts_every_steps=1",
)
"""A run of seconds."""


def untimed(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run without what the clock has measured."""
    return [
        {key: value for key, value in row.items() if not key.startswith("time/") and key != "step_time"}
        for row in metrics
    ]


@dataclass(frozen=True)
class Started:
    """A program that runs; what it says goes to files, so that nobody has to listen for it to go on."""

    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


def start(path: Path, *arguments: object, before: Sequence[str] = (), **environment: str) -> Started:
    """Starts a Python program in a folder, whose modules it can import; `before` stands before the program."""
    stdout, stderr = TemporaryFile(), TemporaryFile()
    process = subprocess.Popen(
        [*before, sys.executable, *map(str, arguments)],
        cwd=path,
        env={**os.environ, **ON_CPU, "PYTHONPATH": f"{path}:{ROOT}", **environment},
        stdout=stdout,
        stderr=stderr,
    )
    return Started(process, stdout, stderr)


def ended(started: Started) -> subprocess.CompletedProcess[str]:
    """What a started program has said, when it is over."""
    code, said = started.process.wait(), []
    for file in (started.stdout, started.stderr):
        file.seek(0)
        said.append(file.read().decode())
        file.close()
    return subprocess.CompletedProcess(started.process.args, code, *said)


def run(path: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python run.py`` with these arguments, in a folder."""
    return ended(start(path, RUN, *arguments, **environment))


def with_torchrun(path: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in two processes, in a folder."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return ended(start(path, *torchrun, *arguments, **environment))
