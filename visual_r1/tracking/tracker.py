"""What every tracker is: it takes the numbers and the sampled rollouts of one run, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NotRequired, Protocol, Self, SupportsFloat, TypedDict

from PIL.Image import Image


class RolloutRow(TypedDict):
    """A sampled rollout as it is recorded."""

    example_id: str
    category: str
    images: Sequence[Image]
    """Shown in W&B; not written to parquet, since the example id brings them back."""
    question: str
    completion: str
    solution: str
    choice: str | None
    """The letter that the answer names; None when it names none."""
    correct: bool
    num_tokens: int
    is_truncated: bool
    keyword_hits: Sequence[str]
    scores: NotRequired[Mapping[str, float]]
    """Each reward term's score before its weight. This and what follows exist where something is trained only."""
    advantage: NotRequired[float]
    group: NotRequired[int]
    """Rollouts of one prompt share this number within their step."""


class Tracker(Protocol):
    """Takes the numbers of one run. A context manager: leaving it finishes the record."""

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        """Records values of a step; several calls for one step are one row, and None or NaN means not measured."""

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        """Records sampled rollouts of a step; `name` says where they come from, "train" or "probe"."""

    def finish(self) -> None:
        """Writes what is still held. Nothing may be logged afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Context:
    """Finishes a tracker when its block ends, however it ends."""

    def finish(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()


class FanOut(Context):
    """Hands everything to several trackers, in order; all are finished even if one of them fails to."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, values: Mapping[str, SupportsFloat | None], *, step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def log_rollouts(self, rows: Sequence[RolloutRow], *, step: int, name: str = "train") -> None:
        for tracker in self._trackers:
            tracker.log_rollouts(rows, step=step, name=name)

    def finish(self) -> None:
        with ExitStack() as stack:
            for tracker in reversed(self._trackers):
                stack.callback(tracker.finish)
