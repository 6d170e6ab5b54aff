"""Length bonus: the naive reward for every token."""

from __future__ import annotations

from dataclasses import dataclass

from visual_r1.examples import Rollout


@dataclass(frozen=True, kw_only=True)
class LengthBonus:
    """``min(1, per_token * num_tokens)``: each token earns the same, whatever it says.

    The paper adds 0.001 a token to the other rewards of an instruct policy and finds longer, repetitive completions
    that are no more accurate. Its longest completion, 700 tokens, earns 0.7; the cap at 1 is never met there.

    Reference: VisualThinker-R1-Zero, the naive length reward (arXiv 2503.05132).

    Raises:
        ValueError: ``per_token`` is not in (0, 1].
    """

    per_token: float

    def __post_init__(self) -> None:
        if not 0 < self.per_token <= 1:
            raise ValueError(f"per_token is {self.per_token}, expected a number above 0 and at most 1")

    def __call__(self, rollout: Rollout) -> float:
        return min(1.0, self.per_token * rollout.num_tokens)
