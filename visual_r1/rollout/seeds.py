"""Seeds of single prompts out of the seed of a whole rollout."""

from __future__ import annotations

import torch


def prompt_seeds(seed: int, count: int) -> list[int]:
    """A seed for each prompt; an engine adds a completion's number to its prompt's. The same inputs, the same seeds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator).tolist()
