"""Sampling that all processes of a run share: each example is asked once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from visual_r1 import distributed
from visual_r1.examples import Example, Rollout
from visual_r1.rollout.engine import RolloutEngine, Sampling, sample

if TYPE_CHECKING:
    from visual_r1.models import Policy


def sample_together(
    engine: RolloutEngine,
    policy: Policy,
    examples: Sequence[Example],
    *,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Rollout]:
    """One rollout of each example, in order, for rank 0; an empty list for the other processes.

    The processes take the engine's batches in turn, and a batch is sampled as one process would have sampled it. The
    rollouts come without their images, which would fill the memory where a benchmark is large.

    Args:
        engine: what samples.
        policy: who is asked; the same in all processes.
        examples: what is asked; the same in all processes.
        sampling: how tokens are drawn.
        seed: of the sampling.
        progress: told now and then how many more examples have been asked, by this process and about as many by others.

    Raises:
        ValueError: an image or a prompt does not fit the model; in every process, also where another one has met it.
    """
    processes = distributed.num_processes()

    def own() -> list[Rollout]:
        rollouts = []
        turn = slice(distributed.rank(), None, processes)
        for (rollout,) in sample(engine, policy, examples, sampling=sampling, seed=seed, batches=turn):
            rollouts.append(replace(rollout, example=replace(rollout.example, images=())))
            progress(processes)
        return rollouts

    parts = distributed.collected(distributed.together(own))
    in_order: dict[int, Rollout] = {}
    for number, part in enumerate(parts):
        starts = range(0, len(examples), engine.batch_size)[number::processes]
        places = [index for start in starts for index in range(start, min(start + engine.batch_size, len(examples)))]
        in_order |= dict(zip(places, part, strict=True))
    return [in_order[index] for index in sorted(in_order)]
