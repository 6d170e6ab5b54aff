"""One update of method=grpo or method=gpg is the one of the published trainer, written out here from its equations."""

from __future__ import annotations

import pytest
import torch

from visual_r1.config import build, compose_config
from visual_r1.datasets.spatial import Spatial
from visual_r1.methods.training import load_weights
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.transformers import encode_prompts

PROMPTS, GROUP, RATE, BETA = 4, 4, 0.02, 1.0  # 25 times the paper's beta, so that its gradient cannot hide
EXAMPLES = Spatial(split="train", size=64)
GIVEN = [f"method.prompts_per_step={PROMPTS}", "method.micro_batch_size=4", "method.trl.optim=sgd"]
GIVEN += [f"method.trl.learning_rate={RATE}", "method.trl.lr_scheduler_type=constant", "method.trl.max_grad_norm=0"]
GIVEN += [f"method.trl.num_generations={GROUP}", "method.trl.max_completion_length=8"]


def recipe(*overrides):
    """The method as its YAML has it, apart from the step's size and plain, unclipped gradient descent."""
    return build(compose_config([*overrides, *GIVEN]).method)


def logps(policy, example_id, completion):
    """The log-probability of each token of a completion, by one plain forward."""
    example = EXAMPLES[int(example_id.rpartition("/")[2])]
    inputs = encode_prompts(policy, [policy.style.messages(policy.fitted(example))])
    ids = torch.tensor([completion.token_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    logits = policy.model(**inputs.to(policy.model.device)).logits[0, -ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, :, None].to(logits.device))[:, 0]


def moved_by(policy, later):
    """Compares the weights after an update with those before less the gradient; the largest difference between them."""
    after = dict(later.model.named_parameters())
    steps = []
    for name, weight in policy.model.named_parameters():
        step = RATE * weight.grad
        torch.testing.assert_close(after[name].detach(), weight.detach() - step, rtol=0, atol=2e-5, msg=name)
        steps.append(step.abs().max().item())
    return max(steps)


def test_the_second_update_of_grpo_is_that_of_the_papers_trainer(load, make_context, listening_engine):
    # The second: at the first, policy and reference are one, and the KL has no gradient.
    length = LengthBonus(per_token=0.07)
    rewards = (WeightedReward(name="length", weight=1.0, function=length),)
    context = make_context(rewards=rewards, engine=listening_engine, examples=EXAMPLES, save_every_steps=1)
    later, _ = recipe("method=grpo", f"method.trl.beta={BETA}", "scale.max_steps=2").train(load(), context)
    reference, policy = load(), load()
    load_weights(policy.model, str(context.folder.checkpoints / "checkpoint-1"))
    rows = context.tracker.rollouts[2, "train"]
    completions = [completion for group in listening_engine.groups[1] for completion in group]
    earned = torch.tensor([min(1.0, 0.07 * len(one.token_ids)) for one in completions]).view(PROMPTS, GROUP)
    advantages = (earned - earned.mean(1, keepdim=True)) / (earned.std(1, keepdim=True) + 1e-4)
    assert advantages.flatten().tolist() == pytest.approx([row["advantage"] for row in rows], abs=1e-4)
    divergence = 0.0
    for row, completion, advantage in zip(rows, completions, advantages.flatten(), strict=True):
        ours = logps(policy, row["example_id"], completion)
        with torch.no_grad():
            theirs = logps(reference, row["example_id"], completion)
        kl = torch.exp(theirs - ours) - (theirs - ours) - 1
        per_token = torch.exp(ours - ours.detach()) * advantage - BETA * kl
        (-per_token.mean() / len(rows)).backward()
        divergence += kl.mean().item() / len(rows)
    assert divergence > 1e-3  # there is something for beta to weigh
    assert moved_by(policy, later) > 2e-3  # a hundred times what is let pass


def test_an_update_of_gpg_is_that_of_its_trainer(load, make_context, listening_engine):
    # Half of the examples earn the same whatever is said about them, as easy and hopeless questions do.
    def length_or_nothing(rollout):
        return LengthBonus(per_token=0.07)(rollout) * (int(rollout.example.id.rpartition("/")[2]) % 2)

    rewards = (WeightedReward(name="length", weight=1.0, function=length_or_nothing),)
    context = make_context(rewards=rewards, engine=listening_engine, examples=EXAMPLES)
    policy = load()
    later, _ = recipe("method=gpg", "scale.max_steps=1").train(load(), context)
    sampled = {tuple(read(policy, one) for one in group): group for call in listening_engine.groups for group in call}
    rows = context.tracker.rollouts[1, "train"]
    groups = [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]
    informative = [group for group in groups if any(row["scores"]["length"] for row in group)]
    assert 0.4 * PROMPTS <= len(informative) < PROMPTS == len(groups)
    for group in groups:
        earned = torch.tensor([row["scores"]["length"] for row in group])
        for row, completion, advantage in zip(
            group,
            sampled[tuple((row["completion"], row["num_tokens"]) for row in group)],
            earned - earned.mean(),
            strict=True,
        ):
            assert row["advantage"] == pytest.approx(advantage.item(), abs=1e-6)
            per_token = -logps(policy, row["example_id"], completion) * advantage
            share = len(informative) / PROMPTS
            (per_token.mean() / len(rows) / share).backward()
    assert moved_by(policy, later) > 2e-3


def read(policy, completion):
    """A completion as a row shows it: its text and its length."""
    body = [token for token in completion.token_ids if token not in policy.end_token_ids]
    return policy.tokenizer.decode(body, skip_special_tokens=True), len(completion.token_ids)
