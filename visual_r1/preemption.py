"""A run that is told to stop: its machine is wanted, or its time is over.

Every scheduler sends SIGTERM before it kills; SLURM sends SIGUSR1 earlier where it is asked to
(``--signal=USR1@120``), and submitit SIGUSR2. Each of them is a notice: a training ends its step and saves, whatever
else is being done ends at once, and the process ends with an exit code by which a script knows that the same command
goes on. A second notice ends it at once. SIGINT stays what it is for a person: an exception, at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = os.EX_TEMPFAIL
"""75: nothing is wrong, and the same command goes on from what was saved."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

ONE_NOTICE_SECONDS = 2.0
"""A scheduler that signals a whole group of processes, and a launcher that passes the signal on, say one thing."""
_ORDERLY_SECONDS = 10.0
"""How long a process that has nothing to save takes at most to end in order, finishing its record and its engines."""
_FINALIZER_SECONDS = 0.02
"""After which a notice comes again that has found an object being taken apart."""


class PreemptedError(SystemExit):
    """Ends this process with `EXIT_CODE`, past everything that handles errors."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _Notice:
    """What this process knows of its end."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_deferred = False
        self.is_passed_on = False
        self.grace_seconds: float | None = None
        self.says = True


_notice = _Notice()


def arm(*, says: bool = True) -> None:
    """Takes notice of `SIGNALS` from here on; call it in the main thread, before anything slow.

    Args:
        says: whether this process prints why it ends; of several, one does.
    """
    global _notice
    _notice = _Notice()
    _notice.says = says
    # The main thread may be deep in a library and hear nothing for minutes; the thread that watches always does.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, _notice), daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def is_announced() -> bool:
    """Whether this process has been told to stop."""
    return _notice.name is not None


def announced_by() -> str:
    """The name of the signal that told it to; empty where another of the processes was told."""
    return _notice.name or ""


@contextmanager
def deferred(*, grace_seconds: float | None) -> Generator[None]:
    """Lets a notice wait while the block runs, which asks `is_announced` where it can stop.

    Args:
        grace_seconds: how long the notice waits; then the process ends where it is, and what was saved before stays.
            None: as long as the block takes.

    Raises:
        PreemptedError: there was a notice before the block, or it has ended without heeding one.
    """
    _notice.grace_seconds, _notice.is_deferred = grace_seconds, True
    try:
        if not is_announced():
            yield
    finally:
        _notice.is_deferred = False
    if is_announced():
        raise PreemptedError


@contextmanager
def passed_on(children: Callable[[], Sequence[int]]) -> Generator[None]:
    """Hands every notice to the processes that this one has started, while the block runs: they know what to save.

    Args:
        children: gives their ids.

    Raises:
        PreemptedError: there is no process to hand it to.
    """

    def hand_on(number: int, _frame: FrameType | None) -> None:
        _notice.name = signal.Signals(number).name
        if not (ids := children()):
            raise PreemptedError
        for one in ids:
            try:
                os.kill(one, number)
            except ProcessLookupError:
                continue  # it has just ended

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    _notice.is_passed_on = True
    try:
        yield
    finally:
        _notice.is_passed_on = False
        for number, handler in before.items():
            signal.signal(number, handler)


def end_after_main(*, seconds: float) -> None:
    """Waits in a process that has nothing left to write until the one that has ends, and with it all others."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(EXIT_CODE))
    time.sleep(seconds)


def say(message: str) -> None:
    """Prints one line, where this process is the one that does."""
    if _notice.says:
        print(" ".join(message.split()), file=sys.stderr, flush=True)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _notice.name is not None:
        return
    if not _notice.is_deferred and _is_in_finalizer(frame):
        threading.Timer(_FINALIZER_SECONDS, os.kill, (os.getpid(), number)).start()
        return
    _notice.name = signal.Signals(number).name
    if not _notice.is_deferred:
        say(f"stopped by {_notice.name}: the same command goes on")
        raise PreemptedError


def _is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether an exception raised now would be printed and forgotten."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _watch(reader: int, notice: _Notice) -> None:
    """Ends the process when it is told a second time, or when the grace is over."""
    first: float | None = None
    while True:
        [number] = os.read(reader, 1)
        if number not in SIGNALS or notice.is_passed_on:
            continue
        now = time.monotonic()
        if first is None:
            first = now
            seconds = notice.grace_seconds if notice.is_deferred else _ORDERLY_SECONDS
            if seconds is not None:
                threading.Thread(target=_end_after, args=(seconds, notice), daemon=True).start()
        elif now - first > ONE_NOTICE_SECONDS:
            _end(notice, f"stopped at once by a second signal, {signal.Signals(number).name}")


def _end_after(seconds: float, notice: _Notice) -> None:
    time.sleep(seconds)
    if not notice.is_deferred:  # it is about to end, and only its record is still being finished
        os._exit(EXIT_CODE)
    _end(notice, f"the step did not end within {seconds:g} seconds of the signal: stopped without saving")


def _end(notice: _Notice, what: str) -> None:
    if notice.says:
        # On a line of its own: a progress bar leaves the one that it stands on open.
        goes_on = f"the same command goes on from the last checkpoint (exit code {EXIT_CODE})"
        print(f"\n{what}; {goes_on}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
