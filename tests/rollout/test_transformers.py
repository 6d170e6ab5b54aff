"""The engine against transformers' own generation and plain forwards, and the draw against hand-made logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from visual_r1.datasets.spatial import Spatial
from visual_r1.examples import Example
from visual_r1.rollout.engine import Sampling, to_rollout
from visual_r1.rollout.transformers import TransformersEngine, draw, encode_prompts

EXAMPLES = Spatial(split="train", size=6)[:]
GREEDY = Sampling(max_completion_length=12, temperature=0.0)
NO_TOKENS = torch.tensor([], dtype=torch.long)


def rectangle(width, height, shade):
    """An image with a gradient: equal patches would hide a wrong order."""
    return Image.linear_gradient("L").resize((width, height)).point(lambda value: (value + shade) % 256).convert("RGB")


def example_with(*sizes):
    images = tuple(rectangle(*size, 40 * number) for number, size in enumerate(sizes))
    question = f"Which of the {len(sizes)} is darker? (A) first (B) second"
    return Example(
        id=str(sizes), images=images, question=question, choices=("first", "second"), solution="A", category="Count"
    )


def generate(policy, examples, sampling=GREEDY, *, num_generations=1, batch_size=64, seed=0):
    conversations = [policy.style.messages(example) for example in examples]
    with TransformersEngine(batch_size=batch_size).serving(policy) as sampler:
        return sampler.generate(conversations, num_generations=num_generations, sampling=sampling, seed=seed)


def tokens(groups):
    return [[completion.token_ids for completion in group] for group in groups]


def plain_logps(policy, example, completion, temperature=1.0):
    """Each token's log-probability by one forward over prompt and completion, without cache or padding."""
    inputs = encode_prompts(policy, [policy.style.messages(example)])
    ids = torch.tensor([completion.token_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    inputs = inputs.to(policy.model.device)
    with torch.no_grad():
        logits = policy.model(**inputs).logits[0, -ids.shape[1] - 1 : -1].cpu()
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, ids[0][:, None])[:, 0]


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_greedy_tokens_are_those_of_transformers(policies, kind):
    policy = policies[kind]
    inputs = encode_prompts(policy, [policy.style.messages(example) for example in EXAMPLES]).to(policy.model.device)
    expected = policy.model.generate(
        **inputs,
        max_new_tokens=GREEDY.max_completion_length,
        do_sample=False,
        suppress_tokens=list(policy.image_token_ids),
    )[:, inputs["input_ids"].shape[1] :].tolist()
    ours = generate(policy, EXAMPLES)
    lengths = {len(group[0].token_ids) for group in ours}
    assert len({len(group[0].prompt_ids) for group in ours}) > 1 and len(lengths) > 1  # padding, and rows that leave
    for row, [completion] in zip(expected, ours, strict=True):
        num_tokens = len(completion.token_ids)
        assert list(completion.token_ids) == row[:num_tokens]
        assert completion.is_truncated == (row[num_tokens - 1] not in policy.end_token_ids)
        assert set(row[num_tokens:]) <= {policy.tokenizer.pad_token_id}


def test_greedy_generations_of_a_group_are_equal(policies):
    alone = generate(policies["base"], EXAMPLES[:3])
    groups = generate(policies["base"], EXAMPLES[:3], num_generations=3)
    assert tokens(groups) == [[group[0].token_ids] * 3 for group in alone]


def test_a_row_that_ends_leaves_the_others_alone(policies):
    together = generate(policies["base"], EXAMPLES)
    alone = [generate(policies["base"], [example])[0] for example in EXAMPLES]
    assert tokens(together) == tokens(alone)
    for [one], [other] in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), rtol=0, atol=1e-4)


def test_the_batch_size_does_not_change_greedy_tokens(policies):
    assert tokens(generate(policies["base"], EXAMPLES, batch_size=4)) == tokens(generate(policies["base"], EXAMPLES))


@pytest.mark.parametrize("kind", ["base", "instruct"])
@pytest.mark.parametrize(
    ("sampling", "temperature"),
    [
        pytest.param(GREEDY, 1.0, id="greedy-reports-temperature-1"),
        pytest.param(replace(GREEDY, temperature=0.7), 0.7, id="temperature-0.7"),
        pytest.param(replace(GREEDY, temperature=1.0, top_k=5, top_p=0.8), 1.0, id="before-the-cuts"),
    ],
)
def test_logps_are_those_of_a_plain_forward(policies, kind, sampling, temperature):
    groups = generate(policies[kind], EXAMPLES[:3], sampling, num_generations=2, seed=3)
    for example, group in zip(EXAMPLES, groups, strict=False):
        for completion in group:
            expected = plain_logps(policies[kind], example, completion, temperature)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=0, atol=1e-4)


def test_several_images_of_several_sizes(policies):
    policy = policies["base"]
    examples = [example_with((56, 84), (112, 56)), example_with((140, 70)), example_with((56, 56), (84, 84), (28, 140))]
    groups = generate(policy, examples, replace(GREEDY, temperature=1.0), num_generations=2, seed=1)
    for example, group in zip(examples, groups, strict=True):
        assert group[0].prompt_ids == group[1].prompt_ids
        encoded = encode_prompts(policy, [policy.style.messages(example)])
        assert list(group[0].prompt_ids) == encoded["input_ids"][0].tolist()
        for completion in group:
            expected = plain_logps(policy, example, completion)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=0, atol=1e-4)
    counts = [group[0].prompt_ids.count(policy.model.config.image_token_id) for group in groups]
    assert counts[1] < counts[0] < counts[2]


def test_a_seed_decides_the_completions(policies):
    sampling = replace(GREEDY, temperature=1.0)
    first, again, other = (
        tokens(generate(policies["base"], EXAMPLES, sampling, num_generations=2, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert any(one != two for one, two in first)  # so do its rows


def test_global_randomness_and_the_training_flag_stay_as_they_were(policies):
    policy = policies["base"]
    before = torch.get_rng_state()
    policy.model.train()
    generate(policy, EXAMPLES[:2], replace(GREEDY, temperature=1.0))
    assert policy.model.training and torch.equal(torch.get_rng_state(), before)
    policy.model.eval()
    generate(policy, EXAMPLES[:2], replace(GREEDY, temperature=1.0))
    assert not policy.model.training


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_image_tokens_are_never_drawn(load, temperature):
    policy = load()
    config = policy.model.config
    placeholders = {
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    }
    assert set(policy.image_token_ids) == placeholders
    bias = torch.zeros(config.text_config.vocab_size, device=policy.model.device)
    bias[list(placeholders)] = 1000.0
    policy.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    groups = generate(policy, EXAMPLES[:2], replace(GREEDY, temperature=temperature), num_generations=4)
    drawn = {token for group in groups for completion in group for token in completion.token_ids}
    assert drawn and not drawn & placeholders


def test_truncation_is_the_absence_of_an_end_token(policies):
    policy = policies["instruct"]
    assert len(policy.end_token_ids) == 2
    sampling = replace(GREEDY, temperature=1.0)
    completions = [one for group in generate(policy, EXAMPLES, sampling, num_generations=4) for one in group]
    for completion in completions:
        *body, last = completion.token_ids
        assert not set(body) & set(policy.end_token_ids)
        assert completion.is_truncated == (last not in policy.end_token_ids)
        assert len(completion.token_ids) == 12 or not completion.is_truncated
        assert len(completion.logps) == len(completion.token_ids)
    assert len({completion.is_truncated for completion in completions}) == 2


def test_an_end_token_at_the_limit_is_no_truncation(policies):
    policy = policies["base"]
    example, completion = next(
        (example, completion)
        for example, [completion] in zip(EXAMPLES, generate(policy, EXAMPLES), strict=True)
        if not completion.is_truncated and len(completion.token_ids) > 1
    )
    limit = len(completion.token_ids)
    at_limit, below = (
        generate(policy, [example], replace(GREEDY, max_completion_length=length))[0][0]
        for length in (limit, limit - 1)
    )
    assert not at_limit.is_truncated and at_limit.token_ids == completion.token_ids
    assert below.is_truncated and below.token_ids == completion.token_ids[:-1]


@pytest.mark.parametrize(
    ("text", "num_thought_tokens"),
    [
        pytest.param("chair</think>\n<answer>(A)</answer>", 1, id="one-word"),
        pytest.param("</think>", 0, id="at-once"),
        pytest.param("chair table chair", None, id="never"),
        pytest.param("chair</think> chair</think>", 1, id="the-first-counts"),
    ],
)
def test_thought_tokens_end_before_the_tag(policies, text, num_thought_tokens):
    policy = policies["base"]
    ids = [*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id]
    rollout = to_rollout(policy, EXAMPLES[0], ids, is_truncated=False)
    if num_thought_tokens:  # what stands before the tag, counted by the tokenizer itself
        num_thought_tokens = len(policy.tokenizer(text.partition("</think>")[0])["input_ids"])
    assert rollout.num_thought_tokens == num_thought_tokens
    assert rollout.completion == text
    assert rollout.text == "<think>" + text
    assert rollout.num_tokens == len(ids)


def test_a_tag_in_several_tokens_is_found(policies):
    policy = policies["base"]
    word = policy.tokenizer("chair")["input_ids"]
    spelled = [token for letter in "</think>" for token in policy.tokenizer(letter)["input_ids"]]
    assert len(spelled) == 8
    rollout = to_rollout(policy, EXAMPLES[0], [*word, *spelled], is_truncated=True)
    assert rollout.completion == "chair</think>" and rollout.num_thought_tokens == len(word)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one(batch_size):
    with pytest.raises(ValueError, match=r"rollout\.engine\.batch_size"):
        TransformersEngine(batch_size=batch_size)


class TestDraw:
    LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def frequencies(self, sampling, num_draws=20_000, banned=NO_TOKENS):
        generator = torch.Generator().manual_seed(0)
        drawn, logps = draw(self.LOGITS.expand(num_draws, -1), banned, sampling, generator)
        expected = torch.log_softmax(self.LOGITS[0] / (sampling.temperature or 1.0), dim=-1)[drawn]
        torch.testing.assert_close(logps, expected)
        return torch.bincount(drawn, minlength=4) / num_draws

    @pytest.mark.parametrize(
        ("sampling", "shares"),
        [
            # exp(2), exp(1), 1, exp(-1) over their sum 11.475
            pytest.param(Sampling(max_completion_length=1), [0.6439, 0.2369, 0.0871, 0.0321], id="all"),
            # exp(4), exp(2), 1, exp(-2) over their sum 63.122
            pytest.param(
                Sampling(max_completion_length=1, temperature=0.5), [0.8650, 0.1171, 0.0158, 0.0021], id="temperature"
            ),
            # e / (1 + e) = 0.7311
            pytest.param(Sampling(max_completion_length=1, top_k=2), [0.7311, 0.2689, 0, 0], id="top-k"),
            pytest.param(
                Sampling(max_completion_length=1, top_k=9), [0.6439, 0.2369, 0.0871, 0.0321], id="large-top-k"
            ),
            # 0.6439 < 0.7, so the second stays; 0.8808 >= 0.7, so the third goes
            pytest.param(Sampling(max_completion_length=1, top_p=0.7), [0.7311, 0.2689, 0, 0], id="top-p"),
            pytest.param(Sampling(max_completion_length=1, top_p=0.01), [1, 0, 0, 0], id="top-p-keeps-one"),
            # Of three left by top-k the first two hold 0.7311 and 0.2447 of 0.9 + 0.1: 0.6652, 0.2447, 0.0900
            pytest.param(Sampling(max_completion_length=1, top_k=3, top_p=0.66), [1, 0, 0, 0], id="top-k-before-top-p"),
        ],
    )
    def test_shares(self, sampling, shares):
        # Four standard errors of a share at 20,000 draws are at most 0.0141.
        torch.testing.assert_close(self.frequencies(sampling), torch.tensor(shares).float(), rtol=0, atol=0.0141)
        if 0 in shares:
            assert self.frequencies(sampling)[shares.index(0)] == 0

    def test_a_ban_comes_before_the_cuts(self):
        shares = self.frequencies(Sampling(max_completion_length=1, top_k=1), banned=torch.tensor([0]))
        assert shares.tolist() == [0, 1, 0, 0]

    def test_greedy_takes_the_likeliest_that_is_allowed(self):
        greedy = Sampling(max_completion_length=1, temperature=0.0)
        assert self.frequencies(greedy).tolist() == [1, 0, 0, 0]
        assert self.frequencies(greedy, banned=torch.tensor([0, 1])).tolist() == [0, 0, 1, 0]

    def test_rows_are_drawn_apart(self):
        logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        sampling = Sampling(max_completion_length=1, top_p=0.5)
        assert draw(logits, NO_TOKENS, sampling, torch.Generator())[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_completion_length", 0), ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_sampling_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{"max_completion_length": 1, name: value})
