"""What is known of a sweep, in files: jobs may run in other processes and on other machines than what started them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from visual_r1 import preemption
from visual_r1.files import read_json, write_json, write_text
from visual_r1.report.columns import aligned
from visual_r1.sweeps.processes import SIGNALS

State = Literal["running", "finished", "skipped", "resumed", "failed", "preempted", "stopped"]

_SHOWN_LINES = 8
_TAIL_BYTES = 2**14


@dataclass(frozen=True, kw_only=True)
class Record:
    """One job."""

    number: int
    run: str
    """Its run folder, or what it would have been."""
    state: State
    reason: str | None = None
    """Why it has failed, in one line."""
    seconds: float | None = None
    log: str | None = None
    """The file with its output; None for a job that was not started."""
    objective: float | None = None
    """Its accuracy on the probe, once it is finished; what a search maximises."""


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep, named by the clock: a sweep that is typed again is another, of the same runs."""

    path: Path

    @property
    def _stopped_by(self) -> Path:
        return self.path / "stopped_by"

    def begin(self, command: str, runs: Sequence[str] | None) -> None:
        """Writes down what was typed, by which process.

        Args:
            command: what was typed.
            runs: the run folders of its jobs; None for a search, which chooses them as it goes.
        """
        by = {"pid": os.getpid(), "host": socket.gethostname()}
        write_json(self.path / "sweep.json", {"command": command, **by, "runs": runs})

    def is_ours(self) -> bool:
        """Whether this process is the one that was typed, and no launcher's worker."""
        sweep = read_json(self.path / "sweep.json")
        return (sweep["pid"], sweep["host"]) == (os.getpid(), socket.gethostname())

    def log(self, number: int, *, machine: int) -> Path:
        """The output of a job, of each of its machines."""
        return self.path / (f"job_{number}.log" if machine == 0 else f"job_{number}_machine_{machine}.log")

    def write(self, record: Record) -> None:
        """Replaces what was known of a job."""
        write_json(self.path / f"job_{record.number}.json", asdict(record))

    def records(self) -> list[Record]:
        """The jobs that were reached, in order."""
        found = (Record(**read_json(path)) for path in self.path.glob("job_*.json"))
        return sorted(found, key=lambda record: record.number)

    def stop(self, number: int) -> None:
        """Lets no further job start, and hands the signal to those that run, wherever they do."""
        if self.stop_signal() is None:
            write_text(self._stopped_by, signal.Signals(number).name)

    def stop_signal(self) -> int | None:
        """The signal that has stopped the sweep; None while it goes on."""
        return signal.Signals[self._stopped_by.read_text()] if self._stopped_by.exists() else None

    def note_signal(self, number: int, _frame: FrameType | None) -> None:
        """Handles a signal to the process that was typed: its jobs end first, and then it does; told again, at once.

        Raises:
            KeyboardInterrupt: it was told before. What a scheduler and a launcher say at the same time is said once.
        """
        if self.stop_signal() is None:
            self.stop(number)
        elif time.time() - self._stopped_by.stat().st_mtime > preemption.ONE_NOTICE_SECONDS:
            raise KeyboardInterrupt

    @contextmanager
    def stoppable(self) -> Generator[None]:
        """Makes every signal to this process one to the sweep while the block runs."""
        before = {number: signal.signal(number, self.note_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def exit_code(sweep: SweepFolder) -> int:
    """What the sweep ends with: 0, or 1 after a failed job, 75 where the same command goes on, 130 after Ctrl-C."""
    states = {record.state for record in sweep.records()}
    by = sweep.stop_signal()
    if "preempted" in states or by in preemption.SIGNALS:
        return preemption.EXIT_CODE
    if by is not None:
        return 128 + by
    return 1 if states & {"failed", "running"} else 0


def table(sweep: SweepFolder, *, seconds: float) -> str:
    """What became of each job, with the last lines of those that have failed."""
    records = sweep.records()
    planned = read_json(sweep.path / "sweep.json")["runs"]
    runs = planned or [record.run for record in records]
    known = {record.number: record for record in records}
    states = [_state(known.get(number)) for number in range(len(runs))]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    rows = [("job", "state", "minutes", "run")]
    for number, (run, state) in enumerate(zip(runs, states, strict=True)):
        rows.append((str(number), state, _minutes(known.get(number)), run))
    jobs = f"{len(runs)} job{'' if len(runs) == 1 else 's'}"
    parts = [f"sweep: {jobs} in {seconds / 60:.1f} minutes: {counts}", "", *aligned(rows)]
    if planned is None:
        parts += ["", *_best(records)]
    for record in records:
        if record.state in ("failed", "running"):
            parts += ["", *_failure(record)]
    return "\n".join(parts)


def _best(records: Sequence[Record]) -> list[str]:
    """What a search has found."""
    measured = [(record.objective, record) for record in records if record.objective is not None]
    if not measured:
        return ["best: none, for no job has finished"]
    accuracy, record = max(measured, key=lambda one: one[0])
    return [f"best: job {record.number}, {100 * accuracy:.1f} % on the probe: {record.run}"]


def _state(record: Record | None) -> str:
    if record is None:
        return "not started"
    return "unknown" if record.state == "running" else record.state


def _minutes(record: Record | None) -> str:
    return "" if record is None or record.seconds is None else f"{record.seconds / 60:.1f}"


def _failure(record: Record) -> list[str]:
    reason = record.reason or "nothing was heard of its end: it runs on elsewhere, or who watched it is gone"
    lines = [f"job {record.number}: {reason}"]
    if record.log is None:
        return lines
    return [*lines, *(f"  | {line}" for line in last_lines(Path(record.log))), f"  log: {record.log}"]


def last_lines(log: Path) -> list[str]:
    """The end of a job's output; of a progress bar, the state that it ended with."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-_SHOWN_LINES:]
