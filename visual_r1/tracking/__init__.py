"""Where numbers go: JSON lines always, Weights & Biases or TensorBoard beside them.

An algorithm returns numbers; whoever runs it hands them to a `Tracker`. A row belongs to an optimizer step, and steps
never go back.
"""

from visual_r1.tracking.jsonl import JsonlTracker, write_rollouts
from visual_r1.tracking.offline_wandb import WandbRecord, read_offline_wandb
from visual_r1.tracking.shown import shown_in
from visual_r1.tracking.tensorboard import TensorboardTracker
from visual_r1.tracking.tracker import FanOut, RolloutRow, Tracker
from visual_r1.tracking.weights_and_biases import WandbTracker

__all__ = [
    "FanOut",
    "JsonlTracker",
    "RolloutRow",
    "TensorboardTracker",
    "Tracker",
    "WandbRecord",
    "WandbTracker",
    "read_offline_wandb",
    "shown_in",
    "write_rollouts",
]
