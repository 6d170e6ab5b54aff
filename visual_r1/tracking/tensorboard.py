"""TensorBoard: the curves of a run as files in its folder, for people without an account."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL.Image import Image

from visual_r1.files import read_json
from visual_r1.tracking.background import BackgroundTracker
from visual_r1.tracking.results import result_values

_MAX_SHOWN = 8


class TensorboardTracker(BackgroundTracker):
    """Writes a run's ``tensorboard/``: ``tensorboard --logdir runs`` shows all runs side by side.

    Every number of the record is a scalar, a few rollouts of each step are text, and so is the configuration. A
    resumed run is written anew from the first step, so that its folder holds one file and each value once.
    """

    service: ClassVar[str] = "TensorBoard"
    _last_step = 0

    def open(self) -> int:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError("not installed: pip install tensorboard") from error

        home = self._folder.tensorboard
        for file in home.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer = SummaryWriter(str(home), flush_secs=10)
        if self._folder.config.exists():
            self._writer.add_text("config", f"```yaml\n{self._folder.config.read_text(encoding='utf-8')}\n```")
        return 0

    def show(
        self,
        row: Mapping[str, float],
        rollouts: Mapping[str, Sequence[Mapping[str, Any]]],
        images: Mapping[str, Image],
    ) -> None:
        self._last_step = int(row["step"])
        self._add(row)
        for source, rows in rollouts.items():
            texts = [_markdown(row) for row in rows[:_MAX_SHOWN]]
            self._writer.add_text(f"rollouts/{source}", "\n\n---\n\n".join(texts), self._last_step)

    def close(self) -> None:
        if self._folder.is_finished:
            self._add(result_values(read_json(self._folder.summary)))
        self._writer.close()

    def _add(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            if key != "step":
                self._writer.add_scalar(key, value, self._last_step)


def _markdown(row: Mapping[str, Any]) -> str:
    facts = {key: row[key] for key in ("example_id", "solution", "choice", "correct", "num_tokens", "advantage")}
    # Indented, or what a completion says between < and > would be taken for HTML.
    texts = "\n\n".join("    " + row[key].replace("\n", "\n    ") for key in ("question", "completion"))
    return f"`{json.dumps(facts)}`\n\n{texts}"
