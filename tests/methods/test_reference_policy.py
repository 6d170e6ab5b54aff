"""The reference policy that trl loads: where it lies."""

from __future__ import annotations

import trl.trainer.grpo_trainer
from trl.trainer.utils import create_model_from_path

from visual_r1.methods.grpo import Grpo, RolloutGrpoTrainer


def test_it_is_not_spread_over_every_gpu_that_is_seen(load, make_context, trl_arguments, monkeypatch):
    asked = []

    def loading(path, **arguments):
        asked.append(arguments)
        return create_model_from_path(path, **arguments)

    monkeypatch.setattr(trl.trainer.grpo_trainer, "create_model_from_path", loading)
    method = Grpo(prompts_per_step=2, micro_batch_size=8, trl=trl_arguments(beta=0.04))
    RolloutGrpoTrainer(policy=load(), context=make_context(), method=method)
    [of_reference] = asked
    assert of_reference["device_map"] is None  # left out, it is "auto" where there is a GPU
