"""Which trackers a configuration asks for beside the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visual_r1.run_folder import RunFolder
from visual_r1.tracking.background import BackgroundTracker
from visual_r1.tracking.tensorboard import TensorboardTracker
from visual_r1.tracking.weights_and_biases import WandbTracker


def shown_in(
    settings: Mapping[str, Any], folder: RunFolder, *, name: str, config: Mapping[str, Any], code: Path | None = None
) -> list[BackgroundTracker]:
    """Starts the trackers that show a run's record.

    Args:
        settings: The node ``tracker``.
        folder: The run's.
        name: Of the run, which its seeds share.
        config: The run's whole configuration, by which W&B groups and tags it.
        code: The source tree that the run is made with; None where nobody knows.
    """
    trackers: list[BackgroundTracker] = []
    if settings["wandb_mode"] is not None:
        named = {group: config[group]["name"] for group in ("scale", "model", "method", "reward") if group in config}
        trackers.append(
            WandbTracker(
                folder,
                config=config,
                mode=settings["wandb_mode"],
                project=settings["project"],
                entity=settings["entity"],
                group=name,
                job_type=named.get("method"),
                tags=[*named.values(), *settings["tags"]],
                log_model=settings["log_model"],
                code=code,
                timeout_seconds=settings["timeout_seconds"],
            )
        )
    if settings["tensorboard"]:
        trackers.append(TensorboardTracker(folder, timeout_seconds=settings["timeout_seconds"]))
    return trackers
