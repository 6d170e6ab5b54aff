"""The GPUs of a job: it sees those that it holds, and no other job holds them."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Lease:
    """The GPUs that a job holds, none where it needs none."""

    devices: tuple[str, ...]
    locks: tuple[int, ...]
    """Open files whose locks are the lease. A process that inherits them holds it too, until it ends."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know to keep to them."""
        if not self.devices:
            return {}
        # The numbers are nvidia-smi's, unless somebody else has chosen them; CUDA counts in another order by itself.
        order = {} if VARIABLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return {VARIABLE: ",".join(self.devices), **order}


def visible() -> tuple[str, ...]:
    """This machine's GPUs by number, without loading torch; where ``CUDA_VISIBLE_DEVICES`` is set, those it leaves."""
    if (chosen := os.environ.get(VARIABLE)) is not None:
        names = [name.strip() for name in chosen.split(",")]
        return tuple(name for name in names if name and not name.startswith("-"))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())


def default_folder() -> Path:
    """Where all sweeps of a user on this machine keep the locks of its GPUs.

    Of SLURM's jobs each has its own: it counts the GPUs that it gives to a job from 0, whichever they are.
    """
    allocation = f"-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    return Path(tempfile.gettempdir()) / f"visual_r1-gpus-{os.getuid()}{allocation}"


@contextmanager
def lease(
    devices: Sequence[str], count: int, *, folder: Path, is_stopped: Callable[[], bool]
) -> Generator[Lease | None]:
    """Holds ``count`` of the GPUs while the block runs, and waits for them before; None when the wait was cut short.

    All or none are taken, so two jobs that need several each never wait for one another. The kernel gives a lock back
    with the last process that holds it, however that dies.

    Args:
        devices: the names to choose from. Without enough of them nothing is held: the job says itself what it lacks.
        count: how many, 0 or more.
        folder: where the locks lie.
        is_stopped: asked while waiting, whether to give up.
    """
    if not 0 < count <= len(devices):
        yield Lease((), ())
        return
    folder.mkdir(parents=True, exist_ok=True)
    while (held := _try_to_hold(devices, count, folder)) is None:
        if is_stopped():
            yield None
            return
        time.sleep(_POLL_SECONDS)
    try:
        yield held
    finally:
        for lock in held.locks:
            os.close(lock)


def _try_to_hold(devices: Sequence[str], count: int, folder: Path) -> Lease | None:
    held: dict[str, int] = {}
    for device in devices:
        lock = os.open(folder / f"{re.sub(r'[^0-9A-Za-z-]', '_', device)}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        held[device] = lock
        if len(held) == count:
            return Lease(tuple(held), tuple(held.values()))
    for lock in held.values():
        os.close(lock)
    return None
