"""The learning rate follows the schedule's length, not the training's, in a resumed run too."""

from __future__ import annotations

import shutil

import pytest

from visual_r1.config import ConfigError, build, compose_config
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.sft import Sft

RATE, STEPS, HORIZON = 0.1, 4, 10


@pytest.fixture
def methods(trl_arguments):
    linear = {"learning_rate": RATE, "lr_scheduler_type": "linear", "warmup_steps": 0, "max_steps": STEPS}

    def build(name, schedule_steps):
        if name == "grpo":
            trl = trl_arguments(**linear, max_completion_length=2, num_generations=2)
            return Grpo(prompts_per_step=1, micro_batch_size=2, trl=trl, schedule_steps=schedule_steps)
        trl = {**linear, "bf16": False, "optim": "sgd"}
        return Sft(examples_per_step=1, micro_batch_size=1, trl=trl, schedule_steps=schedule_steps)

    return build


def rates(context):
    return {step: values["learning_rate"] for step, values in context.tracker.steps.items() if "loss" in values}


@pytest.mark.parametrize("name", ["grpo", "sft"])
@pytest.mark.parametrize(("schedule_steps", "horizon"), [(HORIZON, HORIZON), (None, STEPS)])
def test_update_k_has_the_rate_of_the_formula(load, make_context, methods, name, schedule_steps, horizon):
    context = make_context()
    methods(name, schedule_steps).train(load(), context)
    expected = {step: RATE * (1 - (step - 1) / horizon) for step in range(1, STEPS + 1)}
    assert rates(context) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_a_resumed_run_keeps_to_the_schedule(load, make_context, methods, name):
    context = make_context(save_every_steps=2)
    methods(name, HORIZON).train(load(), context)
    whole = rates(context)
    shutil.rmtree(context.folder.checkpoints / f"checkpoint-{STEPS}")
    context.tracker.steps.clear()
    methods(name, HORIZON).train(load(), context)
    assert rates(context) == {step: whole[step] for step in (3, 4)}


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_a_schedule_that_ends_before_the_training_is_refused(methods, name):
    methods(name, STEPS)
    with pytest.raises(ValueError, match=r"method\.schedule_steps=3: the schedule would end before the training's 4"):
        methods(name, STEPS - 1)


def test_the_refusal_reaches_the_command_line():
    config = compose_config(["scale.schedule_steps=39"])
    with pytest.raises(ConfigError, match=r"method\.schedule_steps=39"):
        build(config.method)
