"""Going on from a partly written completion: the log-probs of one forward, the same rest as without a cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rollout.test_transformers import example_with
from visual_r1.datasets.spatial import Spatial
from visual_r1.models import ModelSource, load_policy
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.plain import plain_logps
from visual_r1.rollout.transformers import TransformersEngine
from visual_r1.rollout.vllm_server import ServerSampler

MODELS = Path(__file__).parents[2] / "models" / "seed0"
EXAMPLES = Spatial(split="test", size=6)[:]
GREEDY = Sampling(max_completion_length=60, temperature=0.0)
WARM = Sampling(max_completion_length=60)


@pytest.fixture(scope="module", params=["base", "instruct"])
def policy(request):
    """The shipped nanos; nobody may change their weights."""
    return load_policy(ModelSource(name="nano", path=str(MODELS / f"nano-{request.param}"), style=request.param))


def generate(policy, examples, sampling, *, prefixes=None, num_generations=1, seed=0, batch_size=64):
    conversations = [policy.style.messages(example) for example in examples]
    with TransformersEngine(batch_size=batch_size).serving(policy) as sampler:
        return sampler.generate(
            conversations, num_generations=num_generations, sampling=sampling, seed=seed, prefixes=prefixes
        )


def test_a_greedy_completion_cut_anywhere_has_the_same_rest(policy):
    whole = [completion for [completion] in generate(policy, EXAMPLES, GREEDY)]
    cuts = [(number, place) for number, one in enumerate(whole) for place in range(len(one.token_ids))]
    assert len(cuts) > 60
    continued = generate(
        policy,
        [EXAMPLES[number] for number, _ in cuts],
        GREEDY,
        prefixes=[whole[number].token_ids[:place] for number, place in cuts],
    )
    for (number, place), [completion] in zip(cuts, continued, strict=True):
        assert completion.token_ids == whole[number].token_ids[place:]
        assert completion.prompt_ids == whole[number].prompt_ids
        assert not completion.is_truncated
        torch.testing.assert_close(
            torch.tensor(completion.logps), torch.tensor(whole[number].logps[place:]), rtol=0, atol=1e-4
        )


def test_logps_after_a_prefix_are_those_of_one_forward(policy):
    inserted = policy.tokenizer(" Wait, let me check again.", add_special_tokens=False)["input_ids"]
    sampled = [completion.token_ids for [completion] in generate(policy, EXAMPLES, WARM, seed=1)]
    prefixes = [(*ids[: 3 * number], *inserted) for number, ids in enumerate(sampled)]
    prefixes[0] = ()  # one that goes on from nothing, beside those that do not
    groups = generate(policy, EXAMPLES, WARM, prefixes=prefixes, num_generations=2, seed=2, batch_size=8)
    assert any(group[0].token_ids != group[1].token_ids for group in groups)
    for example, prefix, group in zip(EXAMPLES, prefixes, groups, strict=True):
        for completion in group:
            expected = plain_logps(policy, policy.style.messages(example), [*prefix, *completion.token_ids])
            torch.testing.assert_close(
                torch.tensor(completion.logps), torch.tensor(expected[len(prefix) :]), rtol=0, atol=1e-4
            )


def test_a_prefix_stands_after_prompts_of_any_number_of_images(policy):
    examples = [example_with((56, 84), (112, 56)), example_with((140, 70)), example_with((56, 56), (84, 84), (28, 140))]
    prefixes = [policy.tokenizer(text)["input_ids"] for text in (" I think it is", " The light", "")]
    assert len(set(map(len, prefixes))) == 3
    for example, prefix, [completion] in zip(
        examples, prefixes, generate(policy, examples, WARM, prefixes=prefixes), strict=True
    ):
        expected = plain_logps(policy, policy.style.messages(example), [*prefix, *completion.token_ids])
        torch.testing.assert_close(
            torch.tensor(completion.logps), torch.tensor(expected[len(prefix) :]), rtol=0, atol=1e-4
        )


def test_no_prefix_and_empty_ones_are_the_same(policy):
    without = generate(policy, EXAMPLES, WARM, num_generations=2, seed=3)
    assert generate(policy, EXAMPLES, WARM, num_generations=2, seed=3, prefixes=[()] * len(EXAMPLES)) == without


def test_an_engine_without_prefixes_says_which_have_them():
    sampler = ServerSampler(policy=None, engine=None, folder="", pushed=None)  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="takes no prefixes: use rollout=transformers"):
        sampler.generate([], num_generations=1, sampling=GREEDY, seed=0, prefixes=[])
