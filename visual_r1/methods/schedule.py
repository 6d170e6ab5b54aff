"""The learning rate's schedule may end later than the training: a run is often read before its schedule is over."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


def check_schedule(schedule_steps: int | None, num_steps: int) -> None:
    """Refuses a schedule that is over before the training.

    Raises:
        ValueError: ``schedule_steps`` is smaller than ``num_steps``, the optimizer steps of the training.
    """
    if schedule_steps is not None and schedule_steps < num_steps:
        raise ValueError(
            f"method.schedule_steps={schedule_steps}: the schedule would end before the training's {num_steps} steps; "
            "raise it, or set it to null to end both together"
        )


class HorizonTrainer(Trainer):
    """A trainer whose schedule is laid out over `schedule_steps`, whatever number of steps it trains.

    Under ``lr_scheduler_type=linear``, update k (from 1) has ``learning_rate * (1 - (k - 1) / schedule_steps)``.
    Warm-up given as a share is a share of the schedule. A resumed run goes on where it was.
    """

    schedule_steps: int | None = None
    """Optimizer steps of the schedule; None ends it with the training."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler, over `schedule_steps` where they are given.

        Raises:
            ValueError: they are fewer than those of the training.
        """
        check_schedule(self.schedule_steps, num_training_steps)  # known only now where the training is given in epochs
        return super().create_scheduler(self.schedule_steps or num_training_steps, optimizer)
