"""``method=eval``: the policy as it is."""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.methods.training import TrainingContext, rollout_row
from visual_r1.models import Policy


@dataclass(frozen=True)
class NoTraining:
    """Trains nothing; the run evaluates the checkpoint that it was given."""

    def check(self) -> None:
        """Has nothing to refuse."""

    def train(self, policy: Policy, context: TrainingContext) -> tuple[Policy, int]:
        """Visits the probe once and returns the policy unchanged."""
        values, rollouts = context.probe.measure(policy)
        context.tracker.log(values, step=0)
        rows = [rollout_row(rollout, context.keyword_hits) for rollout in rollouts]
        context.tracker.log_rollouts(rows, step=0, name="probe")
        return policy, 0
