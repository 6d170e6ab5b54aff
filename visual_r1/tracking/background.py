"""A tracker that works in a thread of its own, so that no service can stop a run or slow it."""

from __future__ import annotations

import json
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, SupportsFloat

from PIL.Image import Image

from visual_r1.errors import first_line
from visual_r1.run_folder import RunFolder
from visual_r1.tracking.tracker import Context, RolloutRow

_logger = logging.getLogger(__name__)
_START_PATIENCE_SECONDS = 5.0
"""How long a run waits for a service to start, once: a library is better not loaded beside the trainer's own."""
_END_PATIENCE_SECONDS = 5.0
"""How long a run waits for the thread of a service that was abandoned."""
_MAX_STEPS_OF_IMAGES = 4
"""Images in memory are those of so many steps at most, whatever a service that hangs has not taken."""


class BackgroundTracker(Context, ABC):
    """Shows the record of a run elsewhere: every row of ``metrics.jsonl`` with the rollouts of its step.

    What it shows is what a `JsonlTracker` has written before, and not what it is given itself: a resumed run is shown
    whole, a service that was slow catches up, and nothing is held in memory but images. A row is shown when it is
    whole: when a later step begins, or at the end.

    Whatever a service does is one warning, and the run goes on without it: a package that is missing, a call that
    raises, one that never returns, a disk that is full.

    Args:
        folder: The run folder, into which a `JsonlTracker` writes.
        timeout_seconds: How long `finish` waits for what is still to be shown.
    """

    service: ClassVar[str]
    """Its name in a warning."""

    def __init__(self, folder: RunFolder, *, timeout_seconds: float) -> None:
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._changed = threading.Condition()
        self._step: int | None = None
        self._is_ended = False
        self._is_off = False
        self._num_shown = 0
        self._known_examples: set[str] = set()
        self._images: dict[int, dict[str, Image]] = {}
        is_started = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(is_started.set,), name=self.service, daemon=True)
        self._thread.start()
        is_started.wait(_START_PATIENCE_SECONDS)

    @abstractmethod
    def open(self) -> int:
        """Starts the service; returns the first step that is to be shown."""

    @abstractmethod
    def show(
        self,
        row: Mapping[str, float],
        rollouts: Mapping[str, Sequence[Mapping[str, Any]]],
        images: Mapping[str, Image],
    ) -> None:
        """Shows a step.

        Args:
            row: What was measured, ``step`` included.
            rollouts: The rows of its parquet file by source, "train" or "probe".
            images: Those that are shown for the first time, by the example's id.
        """

    @abstractmethod
    def close(self) -> None:
        """Shows what a finished run folder holds besides, and ends the service."""

    def leave(self) -> None:
        """Ends the service after a call that has raised; nothing is called afterwards. May raise."""

    def abandon(self) -> None:
        """Frees this process of a service that does not answer; called while another call is under way."""

    @property
    def has_failed(self) -> bool:
        """Whether the service was given up; a warning has said why."""
        return self._is_off

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        self._begin(step)

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        self._begin(step)
        new = {row["example_id"]: row["images"][0] for row in rows if row["images"]}
        new = {example: image for example, image in new.items() if example not in self._known_examples}
        if self._is_off or not new:
            return
        self._known_examples |= new.keys()
        with self._changed:
            self._images[step] = {**self._images.get(step, {}), **new}
            if len(self._images) > _MAX_STEPS_OF_IMAGES:
                self._known_examples -= self._images.pop(min(self._images)).keys()

    def finish(self, *, is_patient: bool = False) -> None:
        """Shows what is left to show, and ends the service.

        Args:
            is_patient: Wait as long as there is a row every `timeout_seconds`, however many there are, because nothing
                else is waited for.
        """
        with self._changed:
            self._is_ended = True
            self._changed.notify()
        num_shown = -1
        while self._thread.is_alive() and num_shown < (self._num_shown if is_patient else 0):
            num_shown = self._num_shown
            self._thread.join(self._timeout_seconds)
        if self._thread.is_alive():
            self._give_up("finish", f"no answer after {self._timeout_seconds:g} seconds")
            self.abandon()
            # A thread that is still at work while Python shuts down can bring the process down with it.
            self._thread.join(_END_PATIENCE_SECONDS)

    def _begin(self, step: int) -> None:
        if step != self._step:
            with self._changed:
                self._step = step
                self._changed.notify()

    def _follow(self, started: Callable[[], None]) -> None:
        doing = "start"
        # A service raises its own errors, the network's, the file system's, or SystemExit where it gives up. None of
        # them is worth a run, and all numbers are in metrics.jsonl; hence the one broad except of the project.
        try:
            first_step = self.open()
            started()
            if self._is_off:
                return
            doing = "log"
            for row in self._rows():
                with self._changed:
                    images = self._images.pop(row["step"], {})
                if row["step"] >= first_step:
                    measured = {key: value for key, value in row.items() if value is not None}
                    self.show(measured, self._rollouts(row["step"]), images)
                    self._num_shown += 1
                if self._is_off:
                    return
            doing = "finish"
            self.close()
        except (Exception, SystemExit) as error:
            self._give_up(doing, first_line(error))
            with suppress(Exception, SystemExit):
                self.leave()
        finally:
            started()

    def _give_up(self, doing: str, reason: str) -> None:
        with self._changed:
            was_off, self._is_off = self._is_off, True
            self._images.clear()
        if not was_off:
            _logger.warning(
                "%s could not %s (%s); the run goes on without it, and `visual-r1 track %s` shows it afterwards",
                *(self.service, doing, reason, self._folder.path),
            )

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the record as they become whole, to the run's end."""
        offset, step = 0, None
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=step: self._is_ended or self._step != seen)
                step, is_ended = self._step, self._is_ended
            for line in self._lines(offset):
                row = _read(line)
                if row is None or not is_ended and step is not None and row["step"] >= step:
                    break  # it is being written
                offset += len(line)
                yield row
            if is_ended:
                return

    def _lines(self, offset: int) -> Iterator[bytes]:
        if not self._folder.metrics.exists():
            return
        with self._folder.metrics.open("rb") as file:
            file.seek(offset)
            yield from file

    def _rollouts(self, step: int) -> dict[str, list[dict[str, Any]]]:
        import pyarrow.parquet

        by_source: dict[str, list[dict[str, Any]]] = {}
        if (path := self._folder.completions_at(step)).exists():
            for row in pyarrow.parquet.read_table(path).to_pylist():
                by_source.setdefault(row.pop("source"), []).append(row)
        return by_source


def _read(line: bytes) -> dict[str, Any] | None:
    """A line's row; None while the line is not there to its end."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
