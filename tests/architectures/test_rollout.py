"""The rollout engine on the true architectures, against transformers' own generation and plain forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visual_r1.architectures.checkpoints import ARCHITECTURES
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts

GREEDY = Sampling(max_completion_length=8, temperature=0.0)


@pytest.fixture(scope="module")
def examples(example):
    """A batch of one, two and one images, of mixed sizes."""
    return [example((280, 140)), example((84, 56), (56, 112), question="Nearer?"), example((300, 300))]


def conversations(policy, examples):
    return [policy.style.messages(policy.fitted(one)) for one in examples]


def generate(policy, examples, sampling=GREEDY, *, num_generations=1, seed=0, prefixes=None):
    with TransformersEngine(batch_size=8).serving(policy) as sampler:
        return sampler.generate(
            conversations(policy, examples),
            num_generations=num_generations,
            sampling=sampling,
            seed=seed,
            prefixes=prefixes,
        )


def test_a_checkpoint_may_penalise_repetition_and_the_engine_does_not(narrow_policy):
    # A greedy `generate` of the base model is not the most likely path.
    assert narrow_policy("qwen2_vl_2b").model.generation_config.repetition_penalty == 1.05


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_are_those_of_transformers(narrow_policy, examples, name):
    policy = narrow_policy(name)
    inputs = encode_prompts(policy, conversations(policy, examples)).to(policy.model.device)
    expected = policy.model.generate(
        **inputs,
        max_new_tokens=GREEDY.max_completion_length,
        do_sample=False,
        repetition_penalty=1.0,
        suppress_tokens=list(policy.image_token_ids),
    )[:, inputs["input_ids"].shape[1] :].tolist()
    groups = generate(policy, examples)
    assert [list(completion.token_ids) for [completion] in groups] == expected
    assert (
        len({tuple(row) for row in expected}) == len(expected) and len({token for row in expected for token in row}) > 3
    )
    assert len({len(completion.prompt_ids) for [completion] in groups}) == len(groups)  # padding is part of it


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logps_are_those_of_a_plain_forward(narrow_policy, examples, name):
    policy = narrow_policy(name)
    groups = generate(policy, examples, replace(GREEDY, temperature=1.0), num_generations=2, seed=1)
    for conversation, group in zip(conversations(policy, examples), groups, strict=True):
        for completion in group:
            inputs = encode_prompts(policy, [conversation])
            ids = torch.tensor([completion.token_ids])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
            with torch.no_grad():
                outputs = policy.model(**inputs.to(policy.model.device), logits_to_keep=ids.shape[1] + 1)
            logits = outputs.logits[0, :-1].cpu()
            expected = torch.log_softmax(logits, dim=-1).gather(-1, ids[0][:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=0, atol=1e-4)
    assert groups[0][0].token_ids != groups[0][1].token_ids


@pytest.mark.parametrize("name", ["qwen2_5_vl_3b_instruct", "qwen3_vl_2b_instruct"])  # layer by layer, and whole
def test_a_greedy_completion_cut_anywhere_has_the_same_rest(narrow_policy, examples, name):
    policy = narrow_policy(name)
    whole = [completion for [completion] in generate(policy, examples)]
    cuts = (5, 2, 0)
    continued = generate(policy, examples, prefixes=[one.token_ids[:cut] for one, cut in zip(whole, cuts, strict=True)])
    for one, cut, [rest] in zip(whole, cuts, continued, strict=True):
        assert one.token_ids[cut:] == rest.token_ids[: len(one.token_ids) - cut]
        torch.testing.assert_close(
            torch.tensor(rest.logps[: len(one.logps) - cut]), torch.tensor(one.logps[cut:]), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_image_is_seen(narrow_policy, example, name):
    policy = narrow_policy(name)
    one, other = (generate(policy, [example(size)], num_generations=1)[0][0] for size in ((280, 140), (140, 280)))
    assert one.prompt_ids == other.prompt_ids  # as many tokens, arranged otherwise
    assert one.logps != other.logps


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_placeholder_of_an_image_is_ever_drawn(narrow_policy, examples, name, temperature):
    policy = narrow_policy(name)
    placeholders = [151652, 151653, 151655, 151656]
    bias = torch.zeros(policy.model.config.get_text_config().vocab_size, device=policy.model.device)
    bias[placeholders] = 1000.0
    hook = policy.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    try:
        groups = generate(policy, examples, replace(GREEDY, temperature=temperature), num_generations=2)
    finally:
        hook.remove()
    drawn = {token for group in groups for completion in group for token in completion.token_ids}
    assert drawn and not drawn & set(placeholders)
