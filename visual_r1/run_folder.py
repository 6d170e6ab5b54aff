"""The run folder: where everything about one run lies, and what keeps a second run from spoiling it."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visual_r1 import manifest
from visual_r1.files import read_json, read_jsonl, remove_partial, write_json, write_jsonl, write_text

_logger = logging.getLogger(__name__)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_COMPLETIONS = re.compile(r"step_(\d+)\.parquet")
_LOCK = ".lock"
_SURROUNDINGS = frozenset(
    (
        *("runs_dir", "distributed.rendezvous", "rollout.engine.url", "rollout.engine.weights_dir"),
        *("rollout.engine.timeout_seconds", "rollout.engine.kv_cache_gib", "rollout.engine.max_model_length"),
        *("tracker.name", "tracker.wandb_mode", "tracker.tensorboard", "tracker.project", "tracker.entity"),
        *("tracker.tags", "tracker.log_model", "tracker.timeout_seconds"),
    )
)
"""Settings of where a run lies and finds others, what room they have and where it is shown, not of what it computes.
Resumed, a run may have others: moved, on another machine, after an engine that had too little room, or without a
tracker that hangs."""


class RunFolderError(ValueError):
    """The run cannot use this folder; the message is one line that names the folder and the fix."""


class RunFinishedError(RunFolderError):
    """The folder holds a finished run. A sweep that is typed again skips such a job."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run, ``runs/<name>/seed<k>/``; by name and not by clock, so that a killed run finds its own.

    Making the object touches nothing. Call `check` before anything slow, and hold `open` while the run writes.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration; its presence makes the folder a run folder."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Commit, versions, hardware of the start, and the same under ``resumes`` for every later continuation."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def completions(self) -> Path:
        """Folder of sampled rollouts, one file a logged step."""
        return self.path / "completions"

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable training states."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained policy in Hugging Face's layout."""
        return self.path / "model"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files, where a run writes them."""
        return self.path / "tensorboard"

    @property
    def evaluation(self) -> Path:
        """The benchmark's scores; ``evaluation.parquet`` beside it holds an item a row."""
        return self.path / "evaluation.json"

    @property
    def evaluation_items(self) -> Path:
        """The benchmark's items, one a row."""
        return self.path / "evaluation.parquet"

    @property
    def summary(self) -> Path:
        """Written last: where it lies, the run is finished."""
        return self.path / "summary.json"

    @property
    def reflection(self) -> Path:
        """What ``visual-r1 probe`` has found, whenever it was asked; see `reflection_record`."""
        return self.path / "reflection.json"

    @property
    def reflection_trials(self) -> Path:
        """The probe's completions, an item and a condition a row."""
        return self.path / "reflection.parquet"

    @property
    def reflection_unfinished(self) -> Path:
        """What a probe has sampled that was cut short; the same command goes on from it."""
        return self.path / "reflection.unfinished.jsonl"

    @property
    def figure(self) -> Path:
        """The curves as a picture; ``figure.svg`` beside it is the same for print."""
        return self.path / "figure.png"

    @property
    def is_finished(self) -> bool:
        return self.summary.exists()

    @property
    def is_begun(self) -> bool:
        """Whether a run was started here and not finished."""
        return self.config.exists() and not self.is_finished

    def completions_at(self, step: int) -> Path:
        """The file of rollouts sampled at an optimizer step."""
        return self.completions / f"step_{step:05d}.parquet"

    def check(self, config: Mapping[str, Any]) -> None:
        """Says whether a run with this configuration may start or resume here; changes nothing on disk.

        Raises:
            RunFinishedError: this very run lies here, finished.
            RunFolderError: a run with another configuration lies here, finished or not, or something that is no run, or
                the folder cannot be written.
        """
        if self.config.exists():
            stored = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            state = "a finished" if self.is_finished else "an unfinished"
            if different := sorted({*_differing_keys(stored, _as_stored(config))} - _SURROUNDINGS):
                raise RunFolderError(
                    f"{self.path} holds {state} run with another configuration ({', '.join(different)}): "
                    "choose another name=... or seed=..., or delete the folder"
                )
        if self.is_finished:
            raise RunFinishedError(
                f"{self.path} holds a finished run, which is never overwritten: "
                "choose another name=... or seed=..., or delete the folder"
            )
        if not self.config.exists() and self.path.exists() and not (self.path.is_dir() and _is_empty(self.path)):
            raise RunFolderError(f"{self.path} exists and is not a run: choose another name=..., or delete it")
        _check_writable(self.path)

    @contextmanager
    def open(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Generator[bool]:
        """Makes or continues the folder and keeps every other process out while the block runs.

        Yields True when an unfinished run is continued. If the block fails before there is a measurement, a checkpoint
        or a model to keep, what this call has made is removed again.

        Raises:
            RunFolderError: as `check`, or another process is writing to this run.
        """
        self.check(config)
        made = [parent for parent in (self.path, *self.path.parents) if not parent.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with _lock(self.path):
            self.check(config)  # again: another process may have ended since
            is_resumed = self.is_begun
            try:
                self._write_record(config, provenance, is_resumed=is_resumed)
                if is_resumed:
                    self._tidy()
                yield is_resumed
            except BaseException:
                if not is_resumed and not self._has_anything_to_keep():
                    self._remove()
                    _remove_empty(made)
                raise

    @contextmanager
    def held(self) -> Generator[None]:
        """Keeps every other process out of a run that lies here while the block runs.

        Raises:
            RunFolderError: there is no run here, or another process is writing to it.
        """
        self.read_config()
        with _lock(self.path):
            yield

    def read_config(self) -> dict[str, Any]:
        """The run's resolved configuration.

        Raises:
            RunFolderError: there is no run here.
        """
        if not self.config.exists():
            raise RunFolderError(f"{self.path} is not a run folder: it has no config.yaml")
        return yaml.safe_load(self.config.read_text(encoding="utf-8"))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl`` in order of step; empty when there are none yet."""
        return read_jsonl(self.metrics) if self.metrics.exists() else []

    def truncate_metrics(self, step: int) -> None:
        """Forgets every measurement after ``step``: the checkpoint to resume from is that old, the rest comes again.

        A run that starts over without a checkpoint forgets everything: ``truncate_metrics(-1)``.

        Removes the lines of later steps, a torn last line, and the sampled rollouts of later steps.
        """
        if self.metrics.exists():
            write_jsonl(self.metrics, [row for row in self.read_metrics() if row["step"] <= step])
        for file in self.completions.glob("step_*.parquet"):
            if (match := _COMPLETIONS.fullmatch(file.name)) and int(match[1]) > step:
                file.unlink()

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end; None when there is none."""
        return next(reversed(whole_checkpoints(self.checkpoints)), None)

    def _write_record(self, config: Mapping[str, Any], provenance: Mapping[str, Any], *, is_resumed: bool) -> None:
        if is_resumed and self.provenance.exists():
            first = read_json(self.provenance)
            write_json(self.provenance, {**first, "resumes": [*first.get("resumes", []), dict(provenance)]})
        else:
            write_json(self.provenance, {**provenance, "resumes": []})
        if not is_resumed:  # last: from here on the folder is a run
            write_text(self.config, yaml.safe_dump(_as_stored(config), sort_keys=False, allow_unicode=True))

    def _tidy(self) -> None:
        """Clears away what a killed run has left unfinished, so that only whole checkpoints are found."""
        remove_partial(self.path)
        for checkpoints in (self.checkpoints, *self.path.glob("stages/*/checkpoints")):
            drop_torn_checkpoints(checkpoints)

    def _has_anything_to_keep(self) -> bool:
        results = (self.model, self.evaluation, self.evaluation_items, self.summary)
        return bool(self.read_metrics()) or any(self.checkpoints.glob("*")) or any(path.exists() for path in results)

    def _remove(self) -> None:
        for folder in (self.completions, self.checkpoints, self.tensorboard, self.path / "wandb"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.config, self.provenance, self.metrics, self.path / _LOCK):
            file.unlink(missing_ok=True)


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder that were written to their end, in order of step."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and manifest.is_sealed(path)
    }
    return [found[step] for step in sorted(found)]


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint; cut short, it leaves one that does not count as whole."""
    (folder / manifest.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def drop_torn_checkpoints(folder: Path) -> None:
    """Leaves a run to resume from the newest checkpoint that is as it was written, and says what it lost.

    One that was cut short is removed. One that is not what its manifest says is set aside as ``damaged-<step>``.

    Raises:
        OSError: a file cannot be read.
    """
    dropped = []
    for path in folder.glob("checkpoint-*"):
        if _CHECKPOINT.fullmatch(path.name) and not manifest.is_sealed(path):
            dropped.append(f"{path.name} was not written to its end")
            remove_checkpoint(path)
    for path in reversed(whole_checkpoints(folder)):
        if (damage := manifest.damage(path)) is None:
            break
        aside = path.with_name(path.name.replace("checkpoint", "damaged"))
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        dropped.append(f"{path.name} is damaged ({damage}; set aside as {aside.name})")
    if dropped:
        whole = whole_checkpoints(folder)
        what = f"going on from {whole[-1].name}" if whole else "no whole checkpoint is left, so training starts over"
        _logger.warning("%s: %s: %s", folder, "; ".join(sorted(dropped)), what)


@contextmanager
def _lock(folder: Path) -> Generator[None]:
    # The kernel drops the lock with the process, however it dies, so a killed run blocks nobody.
    path = folder / _LOCK
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have removed the file meanwhile, and a lock on a removed file keeps nobody out.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError
    except BlockingIOError:
        os.close(descriptor)
        raise RunFolderError(
            f"{folder} is being written by another process: wait for it, or choose another name=... or seed=..."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise RunFolderError(
            f"{path} cannot be locked: {error.strerror}; choose a runs_dir on a file system that has locks "
            "(Lustre: mounted with the option flock)"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _check_writable(path: Path) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    # os.access says yes to root on a read-only file system, so a file is really made; it never gets a name that stays.
    try:
        if not existing.is_dir():
            raise NotADirectoryError(20, "a parent is not a directory")
        probe = existing / f".partial-writable-{os.getpid()}"  # by a name that `remove_partial` knows
        probe.touch()
        probe.unlink(missing_ok=True)  # a run beside this one may have tidied it away, or one elsewhere has this number
    except OSError as error:
        raise RunFolderError(
            f"cannot write the run folder {path}: {existing}: {error.strerror}; choose another runs folder"
        ) from error


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but hidden files, which no run writes except its lock."""
    return all(entry.name.startswith(".") for entry in folder.iterdir())


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, innermost first, up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return  # another run may have put something there a moment ago


def _as_stored(config: Mapping[str, Any]) -> dict[str, Any]:
    """What YAML will give back: tuples become lists, so that a comparison sees real differences only."""
    return yaml.safe_load(yaml.safe_dump(_plain(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _differing_keys(stored: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings.

    One that is not there is null: a setting from after the run was made, null where it changes nothing, makes no other
    run of it.
    """
    if not (isinstance(stored, Mapping) and isinstance(new, Mapping)):
        return [] if stored == new else [prefix]
    return [
        key_path
        for key in {**stored, **new}
        for key_path in _differing_keys(stored.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    ]
