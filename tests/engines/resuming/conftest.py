"""Small runs of every kind that is resumed in its own way, and what must be equal when one of them was interrupted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.engines.resuming.warm import Process, Warm
from tests.processes import untimed
from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder

SAVE_EVERY = 2
COMMON = (
    "tracker=none",
    "runs_dir=runs",
    "scale.num_threads=1",
    "scale.max_steps=8",
    "scale.prompts_per_step=2",
    "scale.num_generations=4",
    "scale.micro_batch_size=4",
    "scale.max_completion_length=8",
    "scale.sft_steps=8",
    "scale.sft_examples_per_step=4",
    "scale.sft_micro_batch_size=2",
    "scale.train_size=10",  # several epochs, each in another order
    "scale.probe_size=2",
    "scale.probe_every_steps=3",
    "scale.benchmark_size=4",
    f"scale.save_every_steps={SAVE_EVERY}",
    "scale.rollouts_every_steps=3",
    "+reward/term@reward.terms.length=length_bonus",
    "reward.terms.length.function.per_token=0.1",
)
TWO = ("distributed=ddp", "scale.prompts_per_step=4")
KINDS = {
    "grpo": ("method=grpo",),
    "iterated": ("method=grpo", "method.trl.num_iterations=2", "scale.save_every_steps=1"),  # saves every second
    "resampling": ("method=dapo",),
    "sft": ("method=sft",),
    "lora": ("method=grpo", "adapter=lora"),
    "chain": ("method=sft_then_grpo", "adapter=lora", "scale.sft_steps=3", "scale.max_steps=4"),
    "ddp": ("method=grpo", *TWO),
    "ddp_sft": ("method=sft", *TWO),
}


@dataclass(frozen=True)
class Place:
    """Where the runs of a test session lie, and what starts them."""

    warm: Warm
    path: Path
    model: Path

    def overrides(self, kind: str, name: str, *more: str) -> list[str]:
        return [*COMMON, *KINDS[kind], f"name={name}", f"model.path={self.model}", *more]

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.path / "runs" / name / "seed0")

    def start(self, kind: str, name: str, *more: str, die: str | None = None) -> tuple[Process, ...]:
        """The processes of a run, rank 0 first; see `Warm.start`."""
        overrides = self.overrides(kind, name, *more)
        if "distributed=ddp" in overrides:
            return self.warm.start_two(overrides)
        return (self.warm.start(overrides, die=die),)

    def hold(self, kind: str, name: str, *more: str, at: str) -> Process:
        """A run in one process that stands still at a call; see `Warm.start`."""
        process = self.warm.start(self.overrides(kind, name, *more), hold=at)
        assert process.wait_until(process.is_held), process.log.read_text()
        return process

    def run(self, kind: str, name: str, *more: str, die: str | None = None) -> tuple[int, Process]:
        """The exit code of a run in one process, and the process."""
        (process,) = self.start(kind, name, *more, die=die)
        return process.wait(), process


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]):
    path = tmp_path_factory.mktemp("resuming")
    with Warm(path) as warm:
        yield Place(warm=warm, path=path, model=checkpoint("base"))


@pytest.fixture(scope="session")
def alone(place: Place) -> Callable[[str], tuple[RunFolder, float]]:
    """A run of each kind that nobody interrupted: its folder, and the processor's seconds that it took."""
    made: dict[str, tuple[RunFolder, float]] = {}

    def run(kind: str) -> tuple[RunFolder, float]:
        if kind not in made:
            processes = place.start(kind, f"{kind}-alone")
            processes[0].wait_until(lambda: False)
            seconds = processes[0].cpu_seconds()
            assert [one.wait() for one in processes] == [0] * len(processes), processes[0].log.read_text()
            made[kind] = place.folder(f"{kind}-alone"), seconds
        return made[kind]

    return run


def files(folder: RunFolder) -> list[str]:
    """What lies in a run folder, hidden files included; a checkpoint may be of another step than elsewhere."""
    paths = (path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())
    return sorted(re.sub(r"checkpoint-\d+", "checkpoint", path) for path in paths)


def assert_same(ours: RunFolder, theirs: RunFolder) -> None:
    """The same numbers to the last bit, the same record, nothing left over."""
    metrics = untimed(ours.read_metrics())
    assert [row["step"] for row in metrics] == list(range(len(metrics)))
    assert metrics == untimed(theirs.read_metrics())
    models = [path.relative_to(theirs.path) for path in theirs.path.rglob("model/model.safetensors")]
    assert models
    for path in models:
        assert (ours.path / path).read_bytes() == (theirs.path / path).read_bytes(), path
    assert read_json(ours.evaluation) == read_json(theirs.evaluation)
    tables = [path.relative_to(theirs.path) for path in theirs.path.rglob("*.parquet")]
    assert len(tables) > 2
    for path in tables:
        assert pyarrow.parquet.read_table(ours.path / path).equals(pyarrow.parquet.read_table(theirs.path / path)), path
    assert files(ours) == files(theirs)
