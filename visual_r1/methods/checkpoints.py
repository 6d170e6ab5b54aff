"""Checkpoints that are whole or not there, and data in an order that does not depend on where a run was resumed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer
from trl.trainer.utils import RepeatSampler

from visual_r1 import distributed, manifest
from visual_r1.files import WriteError, free_bytes, gigabytes, writing
from visual_r1.memory import KEPT_CHECKPOINTS, saved
from visual_r1.run_folder import RunFolder, remove_checkpoint, whole_checkpoints

_logger = logging.getLogger(__name__)


class CheckpointingTrainer(Trainer):
    """A trainer whose checkpoints say themselves that they are whole, by a manifest of every file of every process.

    It makes room before it writes: while a checkpoint is written one other lies beside it, afterwards too.
    """

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        earlier = [one for one in whole_checkpoints(folder.parent) if one != folder]
        if distributed.is_main():
            for one in earlier[: -(KEPT_CHECKPOINTS - 1)]:
                remove_checkpoint(one)
        on = f"goes on from {earlier[-1].name}" if earlier else "starts over"
        try:
            with writing(folder, fix=f"make room and type the same command again, it {on}"):
                super()._save_checkpoint(model, trial)
                _seal(folder)
        except (WriteError, distributed.DistributedError):  # a full disk, here or where another process writes
            if distributed.is_main():  # the others may still be writing, and fail next
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _run_epoch(self, **arguments: Any) -> None:
        if arguments["epoch"] == arguments["epochs_trained"]:
            _advance(arguments["train_dataloader"], arguments["epoch"])
        super()._run_epoch(**arguments)


def _seal(folder: Path) -> None:
    """Completes a checkpoint when every process has written its part; they share the work of reading it again."""
    distributed.meet()  # a file that is still being written goes by another name
    # All list: where machines share the folder over a network, one may not see at once what another has written.
    names = sorted({name for listed in distributed.gathered(manifest.list_files(folder)) for name in listed})
    own = names[distributed.rank() :: distributed.num_processes()]
    described = distributed.together(lambda: manifest.describe(folder, own))
    everything = {name: one for part in distributed.gathered(described) for name, one in part.items()}
    if distributed.is_main():
        manifest.seal(folder, everything)
    distributed.wait_for(folder / manifest.MANIFEST)  # nobody goes on, or ends, before it is there for all


def _advance(dataloader: Any, epoch: int) -> None:
    """Brings trl's sampler to the epoch that a run is resumed in: trl 1.16 would draw the first epoch's order again.

    Other samplers hear the epoch from transformers.
    """
    sampler = dataloader.batch_sampler
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    if isinstance(sampler.sampler, RepeatSampler):
        for _ in range(epoch):
            next(iter(sampler.sampler), None)  # the draw of an epoch's order


def check_space(trainer: Trainer, folder: RunFolder) -> None:
    """Compares what a training will write with what is free; warns where it may not do, and refuses where it cannot.

    Raises:
        WriteError: not even the weights of the checkpoints and of the model would fit.
    """
    parameters = list(trainer.model.parameters())
    sizes = [int(getattr(one, "ds_numel", one.numel())) for one in parameters]  # split by ZeRO-3, one is empty here
    trained = sum(size for one, size in zip(parameters, sizes, strict=True) if one.requires_grad)
    written = saved(
        num_parameters=sum(sizes),
        num_trained=trained,
        weight_bytes=max(one.element_size() for one in parameters),
        has_adapter=hasattr(trainer.model, "peft_config"),
        is_deepspeed=trainer.is_deepspeed_enabled,
    )
    kept = KEPT_CHECKPOINTS
    if trainer.args.max_steps > 0:
        kept = min(kept, -(-trainer.args.max_steps // trainer.args.save_steps))
    available = free_bytes(folder.path) + _size(folder.checkpoints) + _size(folder.model)
    least, likely = kept * written.weights + written.model, written.total(num_checkpoints=kept)
    what = f"{kept} checkpoint{'s' if kept > 1 else ''} and the model"
    if available < least:
        raise WriteError(
            f"{folder.path}: {gigabytes(available)} free, but {what} take at least {gigabytes(least)}: make room, or "
            "choose another runs_dir"
        )
    if available < likely and "adam" in str(trainer.args.optim).lower():
        _logger.warning(
            "%s: %s free, but %s will take about %s: the run will stop when the disk is full",
            *(folder.path, gigabytes(available), what, gigabytes(likely)),
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
