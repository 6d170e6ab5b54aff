"""One update of method=grpo is the one that the paper's trainer would make, written out here from its equations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from visual_r1.config import compose_config
from visual_r1.datasets.spatial import Spatial
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.training import load_weights
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import Completion
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts

PROMPTS, GROUP, RATE, BETA = 4, 4, 0.02, 1.0  # 25 times the paper's beta, so that its gradient cannot hide
REWARDS = (WeightedReward(name="length", weight=1.0, function=LengthBonus(per_token=0.07)),)
EXAMPLES = Spatial(split="train", size=64)
GIVEN = {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "beta": BETA}
GIVEN |= {"num_generations": GROUP, "max_completion_length": 8, "bf16": False, "gradient_checkpointing": False}


@dataclass
class Listener:
    """The real engine; it keeps the training completions of each step."""

    engine: TransformersEngine = field(default_factory=lambda: TransformersEngine(batch_size=64))
    steps: list[list[Completion]] = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        return self.engine.batch_size

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        groups = self.engine.generate(*args, **kwargs)
        if kwargs["num_generations"] == GROUP:
            self.steps.append([completion for group in groups for completion in group])
        return groups


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


def test_the_second_update_is_that_of_the_papers_trainer(load, make_context):
    # The second: at the first, policy and reference are one, and the KL has no gradient.
    trl = {**compose_config(["method=grpo"]).method.trl, **GIVEN, "max_steps": 2}
    context = make_context(rewards=REWARDS, engine=Listener(), examples=EXAMPLES, save_every_steps=1)
    later, _ = Grpo(prompts_per_step=PROMPTS, micro_batch_size=4, trl=trl).train(load(), context)
    reference, policy = load(), load()
    load_weights(policy.model, str(context.folder.checkpoints / "checkpoint-1"))
    completions = context.engine.steps[1]
    rows = context.tracker.rollouts[2, "train"]
    rewards = torch.tensor([min(1.0, 0.07 * len(one.token_ids)) for one in completions]).view(PROMPTS, GROUP)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert advantages.flatten().tolist() == pytest.approx([row["advantage"] for row in rows], abs=1e-4)
    policy.model.zero_grad()
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
    moved = 0.0
    after = dict(later.model.named_parameters())
    for name, weight in policy.model.named_parameters():
        expected = weight.detach() - RATE * weight.grad
        torch.testing.assert_close(after[name].detach(), expected, rtol=0, atol=2e-5, msg=name)
        moved = max(moved, (RATE * weight.grad).abs().max().item())
    assert moved > 2e-3  # a hundred times what is let pass
