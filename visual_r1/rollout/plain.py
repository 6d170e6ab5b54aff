"""Log-probabilities of given tokens by one plain forward pass, without cache or batch: what engines are held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from visual_r1.models import device_of
from visual_r1.rollout.engine import Conversation
from visual_r1.rollout.transformers import encode_prompts

if TYPE_CHECKING:
    from visual_r1.models import Policy


@torch.no_grad()
def plain_logps(policy: Policy, conversation: Conversation, token_ids: Sequence[int]) -> list[float]:
    """The log-probability, at temperature 1, of each token of a completion after its prompt."""
    inputs = encode_prompts(policy, [conversation]).to(device_of(policy.model))
    added = torch.tensor([list(token_ids)], device=inputs["input_ids"].device)
    num_prompt = inputs["input_ids"].shape[1]
    whole = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], added], dim=1),
        "attention_mask": inputs["attention_mask"].new_ones(1, num_prompt + added.shape[1]),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(added)], dim=1),
    }
    logps = policy.model(**whole).logits[0, num_prompt - 1 : -1].float().log_softmax(dim=-1)
    return logps.gather(-1, added[0][:, None])[:, 0].tolist()
