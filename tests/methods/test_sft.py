"""SFT learns the completion and nothing else, and is watched like every other method."""

from __future__ import annotations

import shutil

import pytest
import torch

from visual_r1.datasets.spatial import Spatial
from visual_r1.methods.sft import Sft
from visual_r1.rollout.transformers import encode_prompts

EXAMPLES = Spatial(split="train", size=4)[:]
TRL = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "weight_decay": 0.0, "bf16": False}


def train(policy, context, *, max_steps, micro_batch_size=4):
    method = Sft(examples_per_step=4, micro_batch_size=micro_batch_size, trl={**TRL, "max_steps": max_steps})
    method.check()
    trained, num_steps = method.train(policy, context)
    assert num_steps == max_steps
    return trained


def mean_loss(policy, examples):
    """The mean negative log-probability of the tokens of the completions alone, one plain forward an example."""
    losses = []
    for example in examples:
        inputs = encode_prompts(policy, [policy.style.messages(example)])
        completion = policy.style.answer_only(example) + policy.tokenizer.eos_token
        ids = policy.tokenizer(completion, return_tensors="pt")["input_ids"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
        with torch.no_grad():
            logits = policy.model(**inputs.to(policy.model.device)).logits[0, -ids.shape[1] - 1 : -1].cpu()
        losses += torch.nn.functional.cross_entropy(logits, ids[0], reduction="none").tolist()
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["base", "instruct"])
@pytest.mark.parametrize("micro_batch_size", [4, 2])
def test_the_loss_is_that_of_the_completion_alone(load, make_context, kind, micro_batch_size):
    policy = load(kind)
    expected = mean_loss(policy, EXAMPLES)
    context = make_context(examples=EXAMPLES)
    train(policy, context, max_steps=1, micro_batch_size=micro_batch_size)
    assert context.tracker.steps[1]["loss"] == pytest.approx(expected, rel=1e-4)


def test_it_learns_a_few_examples(load, make_context):
    policy, context = load(), make_context(examples=EXAMPLES)
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    trained = train(policy, context, max_steps=30)
    losses = [context.tracker.steps[step]["loss"] for step in range(1, 31)]
    assert losses[-1] < losses[0] / 3
    assert mean_loss(trained, EXAMPLES) < losses[0] / 3
    assert not any(torch.equal(weight, before[name]) for name, weight in trained.model.named_parameters())


def test_it_is_probed_like_every_method(load, make_context):
    context = make_context()
    train(load(), context, max_steps=3)
    curves = context.tracker.steps
    assert [step for step in curves if "probe/accuracy" in curves[step]] == [0, 2, 3]  # every second, and the last
    assert {"probe/length/incorrect/mean", "probe/reflection/any_rate", "probe/completions/mean_length"} <= set(
        curves[0]
    )
    assert [step for step in curves if "loss" in curves[step]] == [1, 2, 3]
    assert len(context.tracker.rollouts[0, "probe"]) == len(context.probe.examples)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(load, make_context):
    whole, parts = (make_context(save_every_steps=2) for _ in range(2))
    expected = train(load(), whole, max_steps=4)
    train(load(), parts, max_steps=4)
    shutil.rmtree(parts.folder.checkpoints / "checkpoint-4")
    parts.tracker.steps.clear()
    resumed = train(load(), parts, max_steps=4)
    assert list(parts.tracker.steps) == [3, 4]
    assert parts.tracker.steps[4]["loss"] == whole.tracker.steps[4]["loss"]
    weights = expected.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rat": 1.0}, "method.trl.learning_rat: SFTConfig has no such argument; did you mean learning_rate?"),
        ({"max_length": 10}, "method.trl.max_length: the framework sets this itself"),
        ({"max_steps": "many"}, "method.trl.max_steps='many': expected int"),
        ({"optim": "adamm"}, "adamm"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_of_trl_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError) as refused:
        Sft(examples_per_step=4, micro_batch_size=4, trl=arguments).check()
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("micro_batch_size", [0, 3])
def test_micro_batches_divide_a_step(micro_batch_size):
    with pytest.raises(ValueError, match=r"method\.examples_per_step=4: the examples do not divide into"):
        Sft(examples_per_step=4, micro_batch_size=micro_batch_size, trl={})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imitate": "thoughts"}, r"method\.imitate=thoughts: unknown, expected one of \['answer', 'thought'\]"),
        ({"imitate": "thought", "prompt": "sft_reference"}, "imitates bare answers alone"),
    ],
)
def test_what_cannot_be_imitated_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sft(examples_per_step=4, micro_batch_size=4, trl={}, **arguments)
