"""Completions kept on the disk as they come: hours of sampling that are killed and asked for again go on from there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visual_r1.files import writing
from visual_r1.rollout.engine import Completion, Conversation, Sampler, Sampling


class JournalError(OSError):
    """Another process has the file: one line, with the fix."""


class Journal:
    """Completions by what was asked for them, in a file that only one process may have.

    A line is one request: ``{"asked": <its digest>, "completions": [[{...}, ...], ...]}``. It is on the disk before the
    request is answered; a line that a killed process left unfinished is dropped.

    Raises:
        JournalError: another process has the file.
        WriteError: the disk does not take it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise JournalError(f"{path} is being written by another process: wait for it") from None
        self._known = dict(self._read())

    @property
    def num_completions(self) -> int:
        """How many are known."""
        return sum(len(group) for groups in self._known.values() for group in groups)

    def sampler(self, sampler: Sampler, *, of: str) -> RememberingSampler:
        """The same sampler, which is asked only for what is not known.

        Args:
            sampler: who is asked.
            of: whatever decides its completions besides the requests: the weights and the engine.
        """
        return RememberingSampler(sampler=sampler, journal=self, of=of)

    def find(self, asked: str) -> list[list[Completion]] | None:
        """What was answered to a request; None where it was not."""
        return self._known.get(asked)

    def add(self, asked: str, groups: list[list[Completion]]) -> None:
        """Keeps an answer."""
        line = {"asked": asked, "completions": [[asdict(one) for one in group] for group in groups]}
        with writing(self._path):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._known[asked] = groups

    def close(self) -> None:
        """Leaves the file to whoever goes on from it."""
        self._file.close()

    def remove(self) -> None:
        """Removes the file: what it was for is done."""
        self._path.unlink(missing_ok=True)
        self.close()

    def _read(self) -> Iterator[tuple[str, list[list[Completion]]]]:
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                self._file.truncate(end)
                return
            end += len(line)
            yield row["asked"], [[_completion(one) for one in group] for group in row["completions"]]


@dataclass(frozen=True, kw_only=True)
class RememberingSampler:
    """A sampler whose completions a journal keeps; see `Journal.sampler`."""

    sampler: Sampler
    journal: Journal
    of: str

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See `Sampler.generate`."""
        written = None if prefixes is None else [tuple(prefix) for prefix in prefixes]
        asked = hashlib.sha256(repr((self.of, num_generations, sampling, seed, written)).encode())
        for conversation in conversations:
            _add(asked, conversation)
        digest = asked.hexdigest()
        if (known := self.journal.find(digest)) is not None:
            return known
        groups = self.sampler.generate(
            conversations, num_generations=num_generations, sampling=sampling, seed=seed, prefixes=prefixes
        )
        self.journal.add(digest, groups)
        return groups


def _add(asked: hashlib._Hash, conversation: Conversation) -> None:
    """Adds a prompt to a digest, its images pixel by pixel."""
    for message in conversation:
        for part in message["content"]:
            image = part.get("image")
            shape = None if image is None else (image.mode, image.size)
            asked.update(repr((message["role"], part.get("text"), shape)).encode())
            if image is not None:
                asked.update(image.tobytes())


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(
        prompt_ids=tuple(row["prompt_ids"]),
        token_ids=tuple(row["token_ids"]),
        logps=tuple(row["logps"]),
        is_truncated=row["is_truncated"],
    )
