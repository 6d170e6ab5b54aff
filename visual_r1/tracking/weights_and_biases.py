"""Weights & Biases: a run's curves, rollouts, configuration, results and code, offline by default."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from visual_r1.errors import first_line
from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder
from visual_r1.tracking.background import BackgroundTracker
from visual_r1.tracking.offline_wandb import read_offline_wandb
from visual_r1.tracking.results import result_files, result_values

_logger = logging.getLogger(__name__)
_DATA_DIR = "WANDB_DATA_DIR"
_PATIENCE_SECONDS = 5.0
_MAX_TAG_CHARS = 64
_SERVICE_PROCESS = "wandb-core"

SUMMARIES = (
    ("*reflection/keyword/*", "none"),  # sixty columns of the runs table that nobody sorts by
    ("time/*", "mean"),
    ("step_time", "mean"),
    ("loss", "min,last"),
    ("reward", "max,last"),
    ("accuracy*", "max,last"),
    ("probe/accuracy*", "max,last"),
    ("*reflection/any_rate", "max,last"),
    ("*completions/mean_length", "max,last"),
    ("*completions/clipped_ratio", "max,last"),
    ("parity/*", "max,last"),
    ("kl", "max,last"),
    ("grad_norm", "max,last"),
)
"""What the runs table keeps of a curve, by the first pattern that fits its name; of any other its last value."""

_CODE = ("run.py", "pyproject.toml", "requirements.lock", "conf/**/*.yaml", "visual_r1/**/*.py", "visual_r1/**/*.yaml")


class WandbTracker(BackgroundTracker):
    """Shows a run in Weights & Biases: offline by default, into the run folder, with nothing sent anywhere.

    An offline run is one file, however often it was killed and resumed: a resumed run writes its record anew from the
    first step. Online a resumed run goes on under its id. Where online cannot be had, a run is written offline.

    Args:
        folder: The run folder; wandb writes to its ``wandb/``.
        config: The resolved configuration, shown beside the curves with the run's provenance.
        mode: "offline" writes files that ``wandb sync`` uploads later; "online" uploads at once.
        project: The project that the run is filed under.
        entity: The user or team that the project belongs to; None: wandb's own default.
        name: The run's name.
        group: What the seeds of one name share, so that W&B draws them as one curve with a band.
        job_type: What kind of run it is: its method.
        tags: Words to find the run by.
        log_model: Upload the trained model, too.
        code: The source tree to keep beside the run; None keeps none.
        timeout_seconds: How long the last upload at the end may take; the start may take half of it.
    """

    service: ClassVar[str] = "W&B"

    def __init__(
        self,
        folder: RunFolder,
        *,
        config: Mapping[str, Any],
        mode: Literal["offline", "online"] = "offline",
        project: str = "visual-r1",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        log_model: bool = False,
        code: Path | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._run: Any = None
        self._options: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "name": name or "/".join(folder.path.parts[-2:]),
            "group": group,
            "job_type": job_type,
            "tags": list(dict.fromkeys(tag[:_MAX_TAG_CHARS] for tag in tags if tag)),
            "config": {**config, "provenance": _provenance(folder)},
        }
        self._mode = mode
        self._log_model = log_model
        self._code = code
        self._defined: set[str] = set()
        # wandb stages a table's images in the user's home unless told otherwise; they belong to the run.
        self._keeps_data_dir = _DATA_DIR in os.environ
        super().__init__(folder, timeout_seconds=timeout_seconds)

    def open(self) -> int:
        import wandb

        mode = os.environ.get("WANDB_MODE", self._mode) if self._mode == "online" else self._mode
        # A parent's service would keep this run's id for itself when this process is killed.
        os.environ.pop("WANDB_SERVICE", None)
        if not self._keeps_data_dir:
            os.environ[_DATA_DIR] = str(self._home.resolve())
        self._forget_offline()
        if mode == "online":
            try:
                if not wandb.login(prompt=False, verify=False):
                    raise RuntimeError("no API key; run `wandb login`, or use tracker=offline")
                self._start("online")
            except Exception as error:  # wandb's own, the network's, its service's
                if self._is_off:
                    raise
                _logger.warning(
                    "W&B could not start online (%s); it writes offline; `wandb sync %s/offline-run-*` uploads that",
                    *(first_line(error), self._home),
                )
                mode = "offline"
                _end_service()  # which still tries, and would refuse another run of this id
        if self._run is None:
            self._start(mode)
        self._run.define_metric("step")
        if self._code is not None:
            self._log_files("code", {name: self._code / name for name in _sources(self._code)})
        # What a resumed run has uploaded before is not sent again; its last row may have been cut short.
        return int(self._run.summary.get("step", 0)) if mode == "online" else 0

    def show(
        self,
        row: Mapping[str, float],
        rollouts: Mapping[str, Sequence[Mapping[str, Any]]],
        images: Mapping[str, Image],
    ) -> None:
        for example, image in images.items():
            self._keep(example, image)
        for key in sorted(row.keys() - self._defined - {"step"}):
            # Each by its name, and not as "*": of two patterns that fit, wandb takes either. And not log(step=...):
            # wandb drops rows behind its own counter.
            summary = next((summary for pattern, summary in SUMMARIES if fnmatchcase(key, pattern)), None)
            self._run.define_metric(key, step_metric="step", summary=summary)
            self._defined.add(key)
        tables = {f"rollouts/{source}": self._table(rows, step=int(row["step"])) for source, rows in rollouts.items()}
        self._run.log({**row, **tables})

    def close(self) -> None:
        is_finished = self._folder.is_finished
        if is_finished:
            summary = read_json(self._folder.summary)
            self._run.summary.update(result_values(summary))
            self._log_files("results", result_files(self._folder))
            if self._log_model and self._folder.model.exists():
                # By reference to the run folder, which is never overwritten: a copy would double the disk's use.
                self._log_files("model", {"": self._folder.model}, policy="immutable")
        is_offline = self._run.offline
        self._run.finish(exit_code=0 if is_finished else 1)
        if is_offline:
            self._await_file()
        if not self._keeps_data_dir:
            os.environ.pop(_DATA_DIR, None)

    def leave(self) -> None:
        """Ends wandb's own process in order, which else Python waits for at its exit."""
        _end_service()

    def abandon(self) -> None:
        """Ends wandb's own process at once: at its exit Python waits for it, however long it takes to answer."""
        import psutil

        for process in psutil.Process().children():
            if process.name() == _SERVICE_PROCESS:
                process.kill()
        _end_service()  # or wandb would say goodbye to the dead process at this one's exit, and fail it

    @property
    def _home(self) -> Path:
        return self._folder.path / "wandb"

    def _start(self, mode: Any) -> None:
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,  # provenance.json has the commit, and a remote's address may hold a token
            init_timeout=self._timeout_seconds / 2,  # of a server that is not there; then there is time to go offline
            finish_timeout=self._timeout_seconds,
        )
        self._run = wandb.init(
            **self._options,
            dir=self._folder.path,
            id=_run_id(self._folder),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=settings,
            reinit="create_new",
        )

    def _forget_offline(self) -> None:
        """Removes what an earlier start of this run has written: `wandb sync` would lay it over what comes now."""
        for path in (*self._home.glob("offline-run-*"), self._home / "artifacts" / "staging"):
            shutil.rmtree(path, ignore_errors=True)

    def _await_file(self) -> None:
        # wandb 0.31 comes back from finish() before its own process has written the file, so a reader would find half.
        file = Path(self._run.settings.sync_file)
        patience = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < patience and not (file.exists() and read_offline_wandb(file).is_complete):
            time.sleep(0.05)

    def _log_files(self, kind: str, files: Mapping[str, Path], **options: Any) -> None:
        import wandb

        name = re.sub(r"[^\w.-]", "-", f"{self._options['name']}-{kind}")
        artifact = wandb.Artifact(name, type=kind)
        for at, path in files.items():
            if path.is_dir():
                artifact.add_dir(str(path), **options)
            else:
                artifact.add_file(str(path), name=at, **options)
        self._run.log_artifact(artifact)

    def _image_path(self, example: str) -> Path:
        return self._home / "images" / f"{hashlib.sha256(example.encode()).hexdigest()[:16]}.png"

    def _keep(self, example: str, image: Image) -> None:
        """Keeps an image for the tables of a resumed run: the record does not hold it."""
        path = self._image_path(example)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        image.convert("RGB").save(partial, format="PNG")
        partial.replace(path)

    def _table(self, rows: Sequence[Mapping[str, Any]], *, step: int) -> Any:
        import wandb

        # A cell holds one value: the first image, or nothing. One object for all rollouts of a prompt, or wandb would
        # store the image once for each.
        examples = {row["example_id"] for row in rows}
        images = {one: wandb.Image(str(path)) for one in examples if (path := self._image_path(one)).exists()}
        cells = [
            {
                "step": step,
                "example": row["example_id"],
                "category": row["category"],
                "image": images.get(row["example_id"]),
                "question": row["question"],
                "completion": row["completion"],
                "solution": row["solution"],
                "choice": row["choice"],
                "correct": row["correct"],
                "tokens": row["num_tokens"],
                "reflection": ", ".join(row["keyword_hits"]),
                "advantage": row["advantage"],
                **{key: value for key, value in row.items() if key.startswith("score/")},
            }
            for row in rows
        ]
        columns: list[str | int] = list(dict.fromkeys(key for row in cells for key in row))
        return wandb.Table(columns=columns, data=[[row.get(column) for column in columns] for row in cells])


def _end_service() -> None:
    # Not imported: where the import hangs, as from a disk that does not answer, a second one would wait for the first.
    wandb: Any = sys.modules.get("wandb")
    with suppress(Exception, SystemExit):  # by which wandb would end this process as its own has ended
        wandb.teardown()


def _provenance(folder: RunFolder) -> dict[str, Any]:
    """What the run's configuration is shown with: all of its provenance but the longest parts, which are artifacts."""
    if not folder.provenance.exists():
        return {}
    record = {key: value for key, value in read_json(folder.provenance).items() if key != "config"}
    code = {key: value for key, value in (record.get("code") or {}).items() if key not in ("diff", "untracked")}
    return {**record, "code": code, "resumes": [one["started"] for one in record.get("resumes", [])]}


def _sources(root: Path) -> list[str]:
    return sorted({path.relative_to(root).as_posix() for pattern in _CODE for path in root.glob(pattern)})


def _run_id(folder: RunFolder) -> str:
    """An id that a resumed run shares with its start, and a run that was deleted and made anew does not."""
    started = read_json(folder.provenance)["started"] if folder.provenance.exists() else ""
    return hashlib.sha256("\n".join([*folder.path.parts[-2:], started]).encode()).hexdigest()[:12]
