"""What the engines are held to: a prompt's tokens, collapsed for them and expanded as the trainer has them."""

from __future__ import annotations

import pytest
from PIL import Image

from visual_r1.examples import Example
from visual_r1.rollout.engine import EngineError
from visual_r1.rollout.prompt_tokens import check_seen, prompt_tokens
from visual_r1.rollout.transformers import encode_prompts


def conversation(policy, *sizes):
    images = tuple(Image.new("RGB", size, (40 * number, 90, 10)) for number, size in enumerate(sizes))
    example = Example(id="x", images=images, question="Darker?", choices=("one", "two"), solution="A", category="Depth")
    return policy.style.messages(policy.fitted(example))


@pytest.mark.parametrize("kind", ["base", "instruct"])
@pytest.mark.parametrize("sizes", [(), ((56, 84),), ((112, 56), (28, 140), (300, 200))])
def test_they_are_the_processors_own(policies, kind, sizes):
    policy = policies[kind]
    messages = conversation(policy, *sizes)
    tokens = prompt_tokens(policy, messages)
    assert list(tokens.expanded) == encode_prompts(policy, [messages])["input_ids"][0].tolist()
    placeholder = policy.model.config.image_token_id
    assert tokens.collapsed.count(placeholder) == len(tokens.images) == len(sizes)
    num_image_tokens = sum(policy.limits.num_tokens(*image.size) for image in tokens.images)
    assert tokens.expanded.count(placeholder) == num_image_tokens
    assert len(tokens.expanded) - num_image_tokens == len(tokens.collapsed) - len(sizes)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([1, 7, 7, 7, 2], "saw a prompt of 5 tokens, the trainer has 4"),  # images put in twice
        ([1, 7, 8, 2], "saw token 8 at place 2 of a prompt, the trainer has 7"),
    ],
)
def test_a_difference_names_both(seen, message):
    check_seen([1, 7, 7, 2], [1, 7, 7, 2], engine="it")
    with pytest.raises(EngineError, match=message):
        check_seen(seen, [1, 7, 7, 2], engine="it")
