"""What a training pushes to an engine with weights of its own: an update once, and what is frozen once a run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.methods.conftest import ListeningEngine, ListeningSampler
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.resampling import Resampling
from visual_r1.models import Policy
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.pushes import Pushes
from visual_r1.rollout.weights import policy_weights


@dataclass
class HoldingEngine(ListeningEngine):
    """Samples as the trainer does, and keeps beside it the weights that another engine would have been given."""

    pushes: Pushes = field(default_factory=lambda: Pushes(changed_only=True))
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)
    """Tensors that each visit has pushed."""

    @contextmanager
    def serving(self, policy: Policy) -> Generator[ListeningSampler]:
        with self.pushes.next(policy) as push:
            self.weights |= {name: tensor.clone() for name, tensor in push.weights()}
        self.counts.append(push.num_tensors)
        assert all(torch.equal(self.weights[name], tensor) for name, tensor in policy_weights(policy))
        with super().serving(policy) as sampler:
            yield sampler


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_attempts_and_probes_between_two_updates_push_nothing_again(load, make_context, trl_arguments, optim):
    engine = HoldingEngine()
    rewards = (WeightedReward(name="length", weight=1.0, function=LengthBonus(per_token=0.1)),)
    context = make_context(engine=engine, rewards=rewards)
    context = replace(context, probe=replace(context.probe, engine=engine, every_steps=1))
    policy = load(freeze=["vision"])
    total = len(dict(policy_weights(policy)))
    trained = sum(one.requires_grad for one in policy.model.parameters())
    method = Grpo(
        prompts_per_step=2,
        micro_batch_size=8,
        trl=trl_arguments(optim=optim, learning_rate=0.01, max_steps=2),
        # Answers are never right here, so that every step samples three times.
        resampling=Resampling(by="accuracy", min_informative=1.0, max_attempts=3),
    )
    method.train(policy, context)
    assert context.tracker.steps[2]["groups/num_attempts"] == 3
    # Before the first step the probe and the step's attempts; after each update the probe and the next step's.
    assert engine.counts == [total, 0, 0, 0, trained, 0, 0, 0, trained]
    assert 0 < trained < total
