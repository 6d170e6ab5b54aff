"""A job's process: started, listened to, told of every signal, and never left behind."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, TextIO

from visual_r1 import preemption

SIGNALS = (signal.SIGINT, *preemption.SIGNALS)
"""What a sweep hands on to its jobs."""

_PARENT = "VISUAL_R1_PARENT"
_POLL_SECONDS = 0.5
_CHUNK = 2**16


@dataclass(frozen=True)
class Ended:
    """How a process has ended."""

    code: int
    """Its exit code; a negative one is the signal that has killed it."""
    received: tuple[int, ...]
    """The signals that this process was sent meanwhile and has handed on."""


def supervise(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    inherited: Sequence[int],
    log: Path,
    prefix: str,
    stop_signal: Callable[[], int | None],
    is_worker: bool,
) -> Ended:
    """Runs a command until it ends, shows what it prints and keeps it in a file.

    Args:
        command: what to run; it should call `end_with_parent`.
        folder: where it runs.
        environment: what is set for it beside this process's environment.
        inherited: open files that it holds too.
        log: takes its output; what is there stays.
        prefix: stands before each line that is shown; without one, output is shown as it comes, progress bars included.
        stop_signal: asked again and again, which signal the sweep was stopped with.
        is_worker: whether this process is a launcher's, and worth nothing without the process that has started it.
    """
    child: subprocess.Popen[bytes] | None = None
    parent, received = os.getppid(), []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    with _handling(hand_on), log.open("ab", buffering=0) as file:
        # A session of its own: what a terminal sends to everybody in front of it would reach the job twice.
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", _PARENT: str(os.getpid()), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(inherited),
        )
        for number in tuple(received):  # before there was a child to hand them to
            child.send_signal(number)
        copies = [
            threading.Thread(target=_copy, args=(stream, file, shown, prefix), daemon=True)
            for stream, shown in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        ]
        for copy in copies:
            copy.start()
        was_told = False
        while (code := _ended(child)) is None:
            if not (was_told or received) and (number := stop_signal()) is not None:
                was_told = True
                child.send_signal(number)
            if is_worker and os.getppid() != parent:
                _kill_group(child.pid)
                os._exit(1)
        _kill_group(child.pid)  # what the job itself has left behind, killed outright
        for copy in copies:
            copy.join(timeout=10)
    return Ended(code, tuple(received))


def end_with_parent() -> None:
    """Ends this process and those it has started when the sweep that has started it is gone; else does nothing.

    Killed outright, a sweep cannot stop its jobs.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(timeout=_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _kill_group(number: int) -> None:
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody is left


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Generator[None]:
    """Takes `SIGNALS` while the block runs; in a thread, where nobody can, it leaves them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def _copy(source: IO[bytes], log: IO[bytes], shown: TextIO, prefix: str) -> None:
    """Copies a stream to a file and to a terminal until it ends, whatever becomes of the two.

    A job whose output nobody takes any more would stand still.
    """
    decoder, waiting = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while chunk := os.read(source.fileno(), _CHUNK):
        _keep(chunk, log)
        waiting += decoder.decode(chunk)
        ready, waiting = _with_prefix(waiting, prefix) if prefix else (waiting, "")
        _show(ready, shown)
    if waiting:
        _show(f"{prefix}{waiting}\n", shown)


def _with_prefix(text: str, prefix: str) -> tuple[str, str]:
    """The whole lines of a text, each with the prefix, and what is left; of a progress bar, what it ended with."""
    *lines, rest = text.split("\n")
    return "".join(f"{prefix}{line.rstrip().rpartition(chr(13))[2]}\n" for line in lines), rest


def _keep(chunk: bytes, log: IO[bytes]) -> None:
    try:
        log.write(chunk)
    except (OSError, ValueError):
        return  # the disk is full, or the job has ended and what it left behind goes on


def _show(text: str, shown: TextIO) -> None:
    try:
        shown.write(text)
        shown.flush()
    except (OSError, ValueError):
        return
