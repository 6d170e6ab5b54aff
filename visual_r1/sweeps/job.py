"""One job of a sweep, wherever its launcher has put it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visual_r1 import distributed, preemption
from visual_r1.files import read_json
from visual_r1.run_folder import RunFinishedError, RunFolder
from visual_r1.sweeps import devices
from visual_r1.sweeps.ledger import Record, State, SweepFolder
from visual_r1.sweeps.processes import SIGNALS, Ended, supervise


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a launcher's process needs to know of a job."""

    number: int
    command: tuple[str, ...]
    folder: RunFolder
    config: Mapping[str, Any]
    sweep: SweepFolder
    directory: Path
    """Where the sweep was typed, and where the job runs."""
    num_gpus: int
    """What it needs of this machine, if that has any: one a process."""
    num_at_once: int
    """How many jobs share this machine."""

    @property
    def run(self) -> str:
        """The run folder as it was typed."""
        path = self.folder.path
        return str(path.relative_to(self.directory) if path.is_relative_to(self.directory) else path)


def run_job(job: Job) -> float | None:
    """Runs a job in a process of its own and writes down what became of it.

    A finished one is skipped, and what a killed one has left is gone on from. Neither loads torch here.

    Returns:
        The run's `objective`; None for a job that has none, because it failed or was stopped.
    """
    if job.sweep.stop_signal() is not None:
        return None
    record = Record(number=job.number, run=job.run, state="running")
    try:
        job.folder.check(job.config)
    except RunFinishedError:
        value = objective(job.folder)
        _close(job, replace(record, state="skipped", objective=value))
        return value
    except (ValueError, OSError) as error:
        refuse(job.sweep, job.number, run=record.run, reason=str(error))
        return None
    was_begun = job.folder.is_begun
    gpus, said = devices.visible() if job.num_gpus else (), []

    def is_stopped_while_waiting() -> bool:
        if not said:
            said.append(f"job {job.number}: waits for {job.num_gpus} of the GPUs {', '.join(gpus)}")
            print(said[0], flush=True)
        return _is_stopped(job.sweep)

    folder = devices.default_folder()
    with devices.lease(gpus, job.num_gpus, folder=folder, is_stopped=is_stopped_while_waiting) as lease:
        if lease is None:
            return None
        started = time.perf_counter()
        log = job.sweep.log(job.number, machine=distributed.rank())
        record = replace(record, log=str(log))
        _open(job, record, lease)
        launchers, is_worker = _launchers_handlers(), not job.sweep.is_ours()
        ended = supervise(
            job.command,
            folder=job.directory,
            environment={**_threads(job.num_at_once), **lease.environment},
            inherited=lease.locks,
            log=log,
            prefix=f"[{job.number}] " if is_worker else "",
            stop_signal=job.sweep.stop_signal,
            is_worker=is_worker,
        )
    state = _state(job, ended, was_begun=was_begun)
    seconds = round(time.perf_counter() - started, 1)
    reason, value = _reason(ended) if state == "failed" else None, objective(job.folder)
    _close(job, replace(record, state=state, seconds=seconds, reason=reason, objective=value))
    _heed(job.sweep, ended, launchers)
    return value


def refuse(sweep: SweepFolder, number: int, *, run: str, reason: str) -> None:
    """Writes down a job that cannot run, and says why in one line."""
    line = " ".join(reason.split())
    if distributed.is_main():
        sweep.write(Record(number=number, run=run, state="failed", reason=line))
        print(f"error: {line}", file=sys.stderr, flush=True)


def objective(folder: RunFolder) -> float | None:
    """What a search maximises: a finished run's accuracy on the probe, measured after its last step.

    Never the benchmark's, which would then no longer be unseen.
    """
    value = read_json(folder.summary).get("probe_accuracy_after") if folder.is_finished else None
    return None if value is None else float(value)


def _open(job: Job, record: Record, lease: devices.Lease) -> None:
    if distributed.is_main():
        job.sweep.write(record)
        where = f" on GPU {', '.join(lease.devices)} of {socket.gethostname()}" if lease.devices else ""
        print(f"job {job.number}: {record.run}{where}", flush=True)


def _close(job: Job, record: Record) -> None:
    if distributed.is_main():
        job.sweep.write(record)
        print(f"job {job.number}: {record.state}: {record.run}", flush=True)


def _threads(num_at_once: int) -> dict[str, str]:
    """Keeps several jobs from taking every core each."""
    if num_at_once == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_at_once))}


def _state(job: Job, ended: Ended, *, was_begun: bool) -> State:
    if ended.code == 0:
        return "resumed" if was_begun else "finished"
    if ended.code == preemption.EXIT_CODE:
        return "preempted"
    is_stopped = bool(ended.received) or _is_stopped(job.sweep)
    return "stopped" if is_stopped else "failed"


def _reason(ended: Ended) -> str:
    return f"killed by {signal.Signals(-ended.code).name}" if ended.code < 0 else f"exit code {ended.code}"


def _is_stopped(sweep: SweepFolder) -> bool:
    return sweep.stop_signal() is not None


def _launchers_handlers() -> dict[int, Callable[..., Any]]:
    """The signals that the launcher itself waits for, as submitit does to queue a job again."""
    ours = (signal.default_int_handler, SweepFolder.note_signal)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {
        number: one for number, one in handlers.items() if callable(one) and getattr(one, "__func__", one) not in ours
    }


def _heed(sweep: SweepFolder, ended: Ended, launchers: Mapping[int, Callable[..., Any]]) -> None:
    """Stops the sweep when it was told to, or its job was; but where a launcher waits for the signal, tells that."""
    for number in ended.received:
        if number not in launchers:
            sweep.stop(number)
        elif ended.code == preemption.EXIT_CODE:
            signal.raise_signal(number)
    if ended.code == preemption.EXIT_CODE and not ended.received:
        sweep.stop(signal.SIGTERM)
