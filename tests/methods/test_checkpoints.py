"""What a training needs of the disk is known before it begins, and a checkpoint is whole or not there."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers.training_args import OptimizerNames

from visual_r1 import manifest
from visual_r1.files import WriteError, read_json
from visual_r1.methods import checkpoints
from visual_r1.methods.checkpoints import check_space
from visual_r1.methods.sft import CompletionSftTrainer, Sft
from visual_r1.run_folder import RunFolder, whole_checkpoints

SFT = Sft(examples_per_step=4, micro_batch_size=4, trl={"learning_rate": 1e-3, "max_steps": 6, "bf16": False})


@pytest.fixture
def trainer():
    """As much of a trainer as decides what it writes: a million weights of 4 bytes, half of them trained."""
    halves = [torch.nn.Parameter(torch.zeros(500_000), requires_grad=is_trained) for is_trained in (True, False)]
    return SimpleNamespace(
        model=torch.nn.ParameterList(halves),
        args=SimpleNamespace(max_steps=10, save_steps=4, optim=OptimizerNames.ADAMW_TORCH),
        is_deepspeed_enabled=False,
    )


# Two checkpoints and the model: 3 x 4 MB of weights at least, and 2 x 4 MB of Adam's moments with them.
@pytest.mark.parametrize(
    ("free", "warns", "refuses"), [(25_000_000, False, False), (19_000_000, True, False), (11_000_000, False, True)]
)
def test_the_disk_must_take_two_checkpoints_and_the_model(tmp_path, monkeypatch, caplog, trainer, free, warns, refuses):
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: free)
    folder = RunFolder(tmp_path)
    with caplog.at_level(logging.WARNING):
        if refuses:
            with pytest.raises(
                WriteError, match=r"11.0 MB free, but 2 checkpoints and the model take at least 12.0 MB"
            ):
                check_space(trainer, folder)
        else:
            check_space(trainer, folder)
    assert [("about 20.0 MB" in line) for line in caplog.messages] == [True] * warns


def test_what_a_resumed_run_has_written_is_no_further_need(tmp_path, monkeypatch, trainer):
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 7_000_000)
    folder = RunFolder(tmp_path)
    (folder.checkpoints / "checkpoint-4").mkdir(parents=True)
    (folder.checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(bytes(6_000_000))
    check_space(trainer, folder)


@pytest.fixture
def run(load, make_context):
    """Trains by SFT, with a checkpoint after every second step."""

    def build(**replaced):
        context = make_context(save_every_steps=2, **replaced)
        return context, lambda: SFT.train(load(), context)

    return build


def test_two_whole_checkpoints_are_kept_and_one_while_another_is_written(run, monkeypatch):
    context, train = run()
    seen = []

    def save_model(self, output_dir, **arguments):
        seen.append([path.name for path in whole_checkpoints(context.folder.checkpoints)])
        return whole(self, output_dir, **arguments)

    whole = CompletionSftTrainer.save_model
    monkeypatch.setattr(CompletionSftTrainer, "save_model", save_model)
    train()
    assert seen == [[], ["checkpoint-2"], ["checkpoint-4"]]
    kept = whole_checkpoints(context.folder.checkpoints)
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-6"]
    for path in kept:
        assert manifest.damage(path) is None
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(
            read_json(path / manifest.MANIFEST)["files"]
        )


def test_a_checkpoint_that_the_disk_refuses_is_gone_and_the_one_before_it_stays(run, monkeypatch):
    context, train = run()

    def refuse(values, path, **_arguments):
        save(values, path)
        if str(path).endswith("checkpoint-4/optimizer.pt"):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    save = torch.save
    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(WriteError, match=r"cannot write .*checkpoint-4: .* it goes on from checkpoint-2$"):
        train()
    assert [path.name for path in context.folder.checkpoints.iterdir()] == ["checkpoint-2"]


def test_the_manifest_lists_what_any_process_has_written(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "model.safetensors").touch()

    def gathered(value):
        """What another process has written is seen by this one only after this one has listed the files."""
        if value is not None:
            (folder / "rng_state_1.pth").touch()
        return [value, manifest.list_files(folder)] if isinstance(value, list) else [value]

    monkeypatch.setattr(checkpoints.distributed, "gathered", gathered)
    checkpoints._seal(folder)
    assert list(read_json(folder / manifest.MANIFEST)["files"]) == ["model.safetensors", "rng_state_1.pth"]


def test_the_files_are_listed_when_every_process_has_written_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / ".tmpXyz").touch()

    def meet():
        """The other process was about to rename its file."""
        for path in folder.glob(".tmp*"):
            path.rename(folder / "model.safetensors")

    monkeypatch.setattr(checkpoints.distributed, "meet", meet)
    checkpoints._seal(folder)
    assert list(read_json(folder / manifest.MANIFEST)["files"]) == ["model.safetensors"]
