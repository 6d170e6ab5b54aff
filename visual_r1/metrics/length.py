"""Length: how many tokens go into the thought, into the answer, into right and wrong completions?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visual_r1.examples import Rollout
from visual_r1.metrics.measure import means
from visual_r1.parsing import is_correct


@dataclass(frozen=True)
class Length:
    """Mean lengths in tokens.

    Truncated completions count with the length that they were cut to; read ``format/truncated_rate`` beside these.

    Returns:
        ``length/thought/mean``: tokens before the first ``</think>``, over rollouts that closed their thought.
        ``length/answer/mean``: the remaining tokens of the same rollouts, tags and end token included.
        ``length/correct/mean``, ``length/incorrect/mean``: tokens of whole completions, by strict accuracy.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        closed = [(r.num_thought_tokens, r.num_tokens) for r in rollouts if r.num_thought_tokens is not None]
        judged = [(is_correct(rollout), rollout.num_tokens) for rollout in rollouts]
        return means(
            {
                "length/thought/mean": [num_thought for num_thought, _ in closed],
                "length/answer/mean": [num_tokens - num_thought for num_thought, num_tokens in closed],
                "length/correct/mean": [num_tokens for correct, num_tokens in judged if correct],
                "length/incorrect/mean": [num_tokens for correct, num_tokens in judged if not correct],
            }
        )
