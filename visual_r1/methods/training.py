"""What every training method is handed, and the columns and callbacks that they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from datasets import Dataset
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from visual_r1 import distributed, preemption
from visual_r1.errors import first_line
from visual_r1.examples import Example, Rollout
from visual_r1.files import read_json
from visual_r1.methods.checkpoints import check_space
from visual_r1.metrics.measure import Metric
from visual_r1.models import CheckpointError, Policy, loading_whole
from visual_r1.parsing import is_correct, named_letter
from visual_r1.probe import Probe
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import RolloutEngine
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import RolloutRow, Tracker

_SHOWN = (
    ("loss", "loss", "{:.3f}"),
    ("reward", "reward", "{:.2f}"),
    ("completions/mean_length", "length", "{:.1f}"),
    ("reflection/any_rate", "reflection", "{:.2f}"),
    ("probe/accuracy", "| on the probe: accuracy", "{:.3f}"),
    ("probe/completions/mean_length", "length", "{:.1f}"),
    ("probe/reflection/any_rate", "reflection", "{:.2f}"),
)

_RECORD_SECONDS = 120.0
"""How long rank 0 may take to finish the record when the run is told to stop, while the others wait."""


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """What a method trains with, apart from its own arguments."""

    examples: Sequence[Example]
    rewards: Sequence[WeightedReward]
    metrics: Sequence[Metric]
    engine: RolloutEngine
    probe: Probe
    tracker: Tracker
    folder: RunFolder
    seed: int
    save_every_steps: int
    show_every_steps: int
    rollouts_every_steps: int
    keyword_hits: Callable[[str], Sequence[str]]
    first_step: int = 0
    """The steps of the stages before this one: a chain's curves share one axis."""
    deepspeed: Mapping[str, Any] | None = None
    """DeepSpeed's own configuration; None trains without it."""
    fsdp: Mapping[str, Any] | None = None
    """What transformers calls ``fsdp_config``; None leaves the weights whole."""
    grace_seconds: int | None = None
    """How long a step may still take when the run is told to stop; None: as long as it takes."""


class Method(Protocol):
    """A way to train a policy, or not to."""

    def check(self) -> None:
        """Refuses wrong arguments before a model is loaded."""
        ...

    def train(self, policy: Policy, context: TrainingContext) -> tuple[Policy, int]:
        """The trained policy and the number of optimizer steps."""
        ...


def training_rows(policy: Policy, examples: Sequence[Example], to_row: Callable[[Example], dict[str, Any]]) -> Dataset:
    """Examples as the lazy table that trl asks for: a row is made when it is read, its images fitted."""

    # GRPO reads a row once per completion of its group; an image should be rendered or decoded, and resized, once. At
    # the paper's scale an image is 1.2 MB.
    @lru_cache(maxsize=128)
    def example_at(index: int) -> Example:
        return policy.fitted(examples[index])

    rows = _Rows(lambda index: {**to_row(example_at(index)), "index": index})
    return Dataset.from_dict({"index": list(range(len(examples)))}).with_transform(rows)


class _Rows:
    """Makes the rows of a batch of indices.

    A class, because datasets hashes a transform by pickling it, a function's closure and the model in it included: some
    gigabytes of a 2B model, at each start.
    """

    def __init__(self, row: Callable[[int], dict[str, Any]]) -> None:
        self._row = row

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [self._row(index) for index in batch["index"]]
        return {name: [row[name] for row in made] for name in made[0]}

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()


def trainer_arguments(context: TrainingContext, *, save_multiple: int = 1) -> dict[str, Any]:
    """What the framework sets on every trl config; `method.trl` may not.

    Args:
        context: what the method trains with.
        save_multiple: checkpoints lie at multiples of this, where a batch of rollouts is used up: trl does not save the
            rollouts, so that a run resumed amid their updates would draw others.
    """
    return {
        "output_dir": str(context.folder.checkpoints),
        "seed": context.seed,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": -(-context.save_every_steps // save_multiple) * save_multiple,
        "save_total_limit": None,  # the trainer makes room itself: see CheckpointingTrainer
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Copies, because transformers fills in what a configuration leaves open.
        **({} if context.deepspeed is None else {"deepspeed": deepcopy(dict(context.deepspeed))}),
        **({} if context.fsdp is None else {"fsdp": True, "fsdp_config": deepcopy(dict(context.fsdp))}),
    }


def on_one_gpu(config: Any) -> Any:
    """A trl config whose process keeps to one GPU: transformers would take all it sees and tear groups apart."""
    if config.n_gpu > 1:
        config._n_gpu = 1
    return config


RESERVED = frozenset(
    (
        *("output_dir", "seed", "data_seed", "run_name", "report_to", "disable_tqdm", "use_cpu"),
        *("logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_total_limit"),
        *("dataloader_pin_memory", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("reward_weights", "use_vllm", "log_completions", "remove_unused_columns", "generation_batch_size"),
        *("steps_per_generation", "completion_only_loss", "max_length"),
        # With one of these a killed run would not resume as it was, or something would leave this machine.
        *("save_only_model", "ignore_data_skip", "resume_from_checkpoint", "logging_strategy", "push_to_hub"),
        *("load_best_model_at_end", "restore_callback_states_from_checkpoint"),
        # Rows are made from the policy in memory, which no other process gets.
        *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
        # The config group `distributed` decides these.
        *("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config", "ddp_backend", "ddp_timeout"),
    )
)
"""The arguments of trl that the framework decides from its own settings."""


def check_batches(per_step: int, micro_batch_size: int, *, whole: str, fix: str) -> None:
    """Refuses a step that cannot be shared out evenly.

    Args:
        per_step: rows that an optimizer step learns from, over all processes.
        micro_batch_size: rows in one forward and backward pass of one process.
        whole: what `per_step` counts, to begin the message with.
        fix: the argument to change where the rows do not divide among the processes.

    Raises:
        ValueError: with the nearest numbers that work.
    """
    processes = distributed.num_processes()
    if per_step % processes:
        raise ValueError(f"{whole} do not divide among {processes} processes; set {fix} to a multiple of {processes}")
    share = per_step // processes
    if micro_batch_size < 1 or share % micro_batch_size:
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        nearest = min(divisors, key=lambda size: abs(size - micro_batch_size))
        among = f"among {processes} processes " if processes > 1 else ""
        raise ValueError(
            f"{whole} do not divide {among}into micro-batches of {micro_batch_size}; "
            f"set method.micro_batch_size={nearest}"
        )


def micro_batches(per_step: int, micro_batch_size: int) -> int:
    """How many forward and backward passes of one process make an optimizer step."""
    return per_step // (micro_batch_size * distributed.num_processes())


def train_from_last_checkpoint(trainer: Any, context: TrainingContext) -> int:
    """Trains to the end, on from the run's newest checkpoint where there is one; the number of optimizer steps.

    Raises:
        PreemptedError: the run was told to stop, and has saved.
        WriteError: the disk cannot hold what the training writes.
    """
    folder = context.folder
    checkpoint = distributed.gathered(folder.latest_checkpoint())[0]  # rank 0's: the others may see an older list
    if checkpoint is not None:
        state = read_json(checkpoint / "trainer_state.json")
        if state["global_step"] >= state["max_steps"]:
            # Killed between the last checkpoint and the saved model; the trainer would take one more step.
            trainer._load_from_checkpoint(str(checkpoint))
            return state["global_step"]
    distributed.together(lambda: check_space(trainer, folder))
    with preemption.deferred(grace_seconds=context.grace_seconds):
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, TrackingCallback):
                    callback.close()
        signals = [name for name in distributed.gathered(preemption.announced_by()) if name]
        if signals:
            _end_preempted(trainer.state.global_step, folder, signal=signals[0])
    return trainer.state.global_step


def _end_preempted(step: int, folder: RunFolder, *, signal: str) -> None:
    preemption.say(
        f"stopped by {signal}: saved {folder.checkpoints / f'checkpoint-{step}'}; the same command goes on from there "
        f"(exit code {preemption.EXIT_CODE})"
    )
    if not distributed.is_main():
        preemption.end_after_main(seconds=_RECORD_SECONDS)
    raise preemption.PreemptedError


def load_weights(model: Any, checkpoint: str) -> None:
    """Puts the weights of a trainer's checkpoint into a model of the same class and the same adapters.

    Instead of the trainer's own way (transformers 5.17), which goes on from the starting weights without an error: it
    writes Qwen2-VL's weights under older names and looks for the names in memory, and of several adapters it leaves out
    the trained one, which lies beside the folders of the others and not among them.
    """
    if isinstance(model, PreTrainedModel):
        try:
            with loading_whole():
                saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, use_safetensors=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{checkpoint} is damaged ({first_line(error)}): delete it to resume from the one before"
            ) from error
        model.load_state_dict(saved.state_dict())
        return
    for name in list(model.peft_config):
        is_trained = name == "default"  # the other is trl's copy of it, the reference policy
        model.load_adapter(checkpoint if is_trained else f"{checkpoint}/{name}", name, is_trainable=is_trained)
    model.set_adapter("default")


class PreemptionCallback(TrainerCallback):
    """Saves and stops at the next step where a checkpoint may lie, when any process has been told to stop."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Asks all processes at every such step: they must stop at the same one."""
        is_amid_rollouts = state.global_step % getattr(args, "num_iterations", 1) != 0  # see trainer_arguments
        if not is_amid_rollouts and any(distributed.gathered(preemption.is_announced())):
            control.should_save = control.should_training_stop = True


class TrackingCallback(TrainerCallback):
    """Hands the trainer's numbers to the tracker under trl's own names, and shows a few of them."""

    def __init__(self, context: TrainingContext, *, description: str) -> None:
        self._context = context
        self._description = description
        self._bar: tqdm | None = None
        self._shown: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Opens the progress bar, at the resumed step where there is one."""
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._description, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Moves the progress bar."""
        if self._bar is not None:
            self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Passes every number on; the totals that the trainer adds at its end are no curve."""
        logs = kwargs["logs"]
        if "train_runtime" in logs:
            return
        values = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        self._context.tracker.log(values, step=self._context.first_step + state.global_step)
        self.remember(values)
        if self._bar is not None and state.global_step % self._context.show_every_steps == 0:
            parts = [f"{label} {form.format(self._shown[key])}" for key, label, form in _SHOWN if key in self._shown]
            self._bar.write(f"step {self._context.first_step + state.global_step:>4}  " + "  ".join(parts))

    def remember(self, values: Mapping[str, float]) -> None:
        """Takes numbers for the next line that is shown."""
        self._shown |= values

    def close(self) -> None:
        """Closes the progress bar, so that what is printed next has a line of its own."""
        if self._bar is not None:
            self._bar.close()


class ProbeCallback(TrainerCallback):
    """Visits the probe before the first step and as training goes on."""

    def __init__(
        self, policy: Policy, context: TrainingContext, *, show: Callable[[Mapping[str, float]], None]
    ) -> None:
        self._policy = policy
        self._context = context
        self._show = show

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Measures step 0: whatever is there before training is not an effect of training."""
        if state.global_step == 0:
            self._visit(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Measures every `every_steps` steps, and at the last."""
        # Every rank samples: ZeRO-3 gathers the weights collectively, and a rank that skips this hangs the rest.
        if self._context.probe.is_due(state.global_step, state.max_steps):
            self._visit(state)

    def _visit(self, state: Any) -> None:
        started = time.perf_counter()
        values, rollouts = self._context.probe.measure(self._policy)
        values["time/probe"] = time.perf_counter() - started
        step = self._context.first_step + state.global_step
        if state.is_world_process_zero:
            self._context.tracker.log(values, step=step)
            self._show(values)
            rows = [rollout_row(rollout, self._context.keyword_hits) for rollout in rollouts]
            self._context.tracker.log_rollouts(rows, step=step, name="probe")


def watch(trainer: Any, policy: Policy, context: TrainingContext, *, description: str) -> None:
    """Puts our callbacks on a trainer in place of the one that prints every dictionary of numbers."""
    trainer.remove_callback(PrinterCallback)
    tracking = TrackingCallback(context, description=description)
    trainer.add_callback(tracking)
    trainer.add_callback(ProbeCallback(policy, context, show=tracking.remember))
    trainer.add_callback(PreemptionCallback())


def rollout_row(rollout: Rollout, keyword_hits: Callable[[str], Sequence[str]]) -> RolloutRow:
    """A rollout as the trackers take it."""
    example = rollout.example
    return {
        "example_id": example.id,
        "category": example.category,
        "images": example.images,
        "question": example.question,
        "completion": rollout.completion,
        "solution": example.solution,
        "choice": named_letter(rollout),
        "correct": is_correct(rollout),
        "num_tokens": rollout.num_tokens,
        "is_truncated": rollout.is_truncated,
        "keyword_hits": list(keyword_hits(rollout.completion)),
    }
