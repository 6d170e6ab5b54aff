"""The plain forward pass that engines are held to, against the model's own loss."""

from __future__ import annotations

import pytest
import torch

from visual_r1.datasets.spatial import Spatial
from visual_r1.rollout.plain import plain_logps
from visual_r1.rollout.transformers import encode_prompts


def test_each_token_is_scored_after_those_before_it(policies):
    policy = policies["base"]
    conversation = policy.style.messages(policy.fitted(Spatial(split="probe", size=1)[0]))
    logps = plain_logps(policy, conversation, (40, 50, 60))
    inputs = encode_prompts(policy, [conversation])
    for number, token in enumerate((40, 50, 60)):
        with torch.no_grad():
            last = policy.model(**inputs).logits[0, -1].log_softmax(dim=-1)
        assert logps[number] == pytest.approx(last[token].item(), abs=1e-5)
        one = torch.tensor([[token]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], one], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(one)], dim=1)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(one)], dim=1)
