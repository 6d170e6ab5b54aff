"""Methods one after another, for example an SFT cold start and then RL."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import set_seed

from visual_r1 import distributed
from visual_r1.methods.training import Method, TrainingContext
from visual_r1.models import Policy, load_policy, save_policy, saved_steps
from visual_r1.run_folder import RunFolder

_STAGES = "stages"


def last_kept_step(folder: RunFolder) -> int:
    """The step that an interrupted run goes on from, whole stages counted; -1 when it starts over."""
    parts = [folder, *(RunFolder(path) for path in (folder.path / _STAGES).glob("*"))]
    finished = [steps for part in parts if (steps := saved_steps(part.model)) is not None]
    checkpoints = [part.latest_checkpoint() for part in parts if saved_steps(part.model) is None]
    reached = [int(checkpoint.name.rpartition("-")[2]) for checkpoint in checkpoints if checkpoint is not None]
    return sum(finished) + sum(reached) if finished or reached else -1


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Trains by each stage in turn; a stage starts from the checkpoint that the one before it saved.

    Through the disk, because GRPO's reference policy is loaded by path: it must be the policy after SFT, not before.
    """

    stages: Mapping[str, Method]
    """By name, in order; a stage's checkpoints and model lie under ``stages/<name>``."""

    def check(self) -> None:
        """Refuses wrong arguments of any stage before a model is loaded."""
        if not self.stages:
            raise ValueError("method.stages is empty")
        for method in self.stages.values():
            method.check()

    def train(self, policy: Policy, context: TrainingContext) -> tuple[Policy, int]:
        """Runs the stages on one axis of steps; a finished stage of an interrupted run is not run again."""
        num_steps = 0
        for name, method in self.stages.items():
            folder = RunFolder(context.folder.path / _STAGES / name)
            if saved_steps(folder.model) is None:
                folder.path.mkdir(parents=True, exist_ok=True)
                stage = replace(context, folder=folder, first_step=context.first_step + num_steps)
                trained, steps = method.train(policy, stage)
                save_policy(trained, folder.model, num_steps=steps)
                del trained
            distributed.wait_for(folder.model)  # which rank 0 has just saved
            num_steps += saved_steps(folder.model) or 0
            source = replace(policy.source, name=f"{policy.source.name}-{name}", path=str(folder.model))
            if policy.adapter is not None:
                source = replace(source, dtype="float32")  # as the merged weights were saved: see save_policy
            gc.collect()
            set_seed(context.seed)  # or adapters would begin otherwise where the stage before them is not run again
            policy = load_policy(source, freeze=policy.freeze, adapter=policy.adapter)
        return policy, num_steps
