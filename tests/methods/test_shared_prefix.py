"""Sharing a group's prompt changes nothing but the time: log-probs, entropies and every gradient are trl's."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from trl import GRPOTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from visual_r1.methods import shared_prefix
from visual_r1.methods.shared_prefix import Layout, Prompts, pack, unknown, unpack, unshared

IMAGE, FIRST_WORD, VOCABULARY = 10, 20, 97
TEXT = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True},
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    **{"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0},
}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 11, "vision_start_token_id": 12, "vision_end_token_id": 13}
PATCH = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "depth": 3}
VALUES_PER_PATCH = 3 * 2 * 4 * 4


def qwen2_vl():
    vision = {**PATCH, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration, Qwen2VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)


def qwen2_5_vl():
    vision = {
        **PATCH,
        **{"hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24},
        **{"window_size": 16, "fullatt_block_indexes": [1]},
    }
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)


ARCHITECTURES = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}


def build(architecture, *, seed=0, **changed):
    model_class, config = ARCHITECTURES[architecture]()
    for name, value in changed.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(seed)
    model = model_class._from_config(config, attn_implementation="sdpa").train()
    with torch.no_grad():  # the initial weights are so small that no token would matter to another
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(8 if "visual" in name else 4)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


@dataclass
class Drawn:
    """Completions behind their prompts, as trl lines them up."""

    input_ids: torch.Tensor
    mask: torch.Tensor
    width: int
    prompt_of: torch.Tensor
    pixels: list[torch.Tensor]
    """By prompt."""
    grids: list[torch.Tensor]
    weights: torch.Tensor
    """[N, C], so that each token has a gradient of its own."""

    @property
    def split(self):
        return self.input_ids.shape[1] - self.width


def draw(seed, *, group_sizes, max_images=2, longest=9):
    """Prompts and completions of all lengths, one of them without a scored token, in an order that mixes the groups."""
    numbers, torch_numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    prompts, pixels, grids = [], [], []
    for _ in group_sizes:
        parts, own_pixels, own_grids = [], [], []
        for _ in range(numbers.randint(0, max_images)):
            grid = (1, 2 * numbers.randint(1, 4), 2 * numbers.randint(1, 4))
            own_grids.append(grid)
            own_pixels.append(torch.randn(grid[1] * grid[2], VALUES_PER_PATCH, generator=torch_numbers))
            parts += words(numbers, 0, 3) + [12] + [IMAGE] * (grid[1] * grid[2] // 4) + [13]
        prompts.append(parts + words(numbers, 1, 9))
        pixels.append(torch.cat(own_pixels) if own_pixels else torch.empty(0, VALUES_PER_PATCH))
        grids.append(torch.tensor(own_grids, dtype=torch.long).reshape(-1, 3))
    prompt_of = [number for number, size in enumerate(group_sizes) for _ in range(size)]
    numbers.shuffle(prompt_of)
    completions = [words(numbers, 1, longest) for _ in prompt_of]
    split, width = max(map(len, prompts)), max(map(len, completions))
    input_ids = torch.zeros(len(prompt_of), split + width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, (number, completion) in enumerate(zip(prompt_of, completions, strict=True)):
        start, end = split - len(prompts[number]), split + len(completion)
        input_ids[row, start:end] = torch.tensor(prompts[number] + completion)
        mask[row, start:end] = 1
    if len(prompt_of) > 1:
        mask[numbers.randrange(len(prompt_of)), split:] = 0  # trl's mask_truncated_completions
    weights = torch.randn(len(prompt_of), width, generator=torch_numbers)
    return Drawn(input_ids, mask, width, torch.tensor(prompt_of), pixels, grids, weights)


def words(numbers, least, most):
    return [numbers.randrange(FIRST_WORD, VOCABULARY) for _ in range(numbers.randint(least, most))]


def stock(model, drawn):
    """Log-probs and entropies [N, C] by trl, a row of its own for each completion."""
    numbers = drawn.prompt_of.tolist()
    pixels = torch.cat([drawn.pixels[number] for number in numbers])
    in_prompt = torch.arange(drawn.input_ids.shape[1]) < drawn.split
    of_images = {
        "pixel_values": pixels,
        "image_grid_thw": torch.cat([drawn.grids[number] for number in numbers]),
        "num_images": [len(drawn.grids[number]) for number in numbers],
        "mm_token_type_ids": ((drawn.input_ids == IMAGE) & in_prompt).int(),
    }
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    logps, entropies, _ = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__(
        trainer,
        *(model, drawn.input_ids, drawn.mask, drawn.width),
        compute_entropy=True,
        **(of_images if len(pixels) else {}),
    )
    scored = drawn.mask[:, drawn.split :]
    return logps * scored, entropies * scored


def shared(model, drawn, rows=None, *, call=True):
    """The same by one packed row; of some of the completions only."""
    rows = torch.arange(len(drawn.prompt_of)) if rows is None else rows
    known, prompt_of = drawn.prompt_of[rows].unique(return_inverse=True)
    first = [int((drawn.prompt_of == number).nonzero()[0]) for number in known]
    pixels = torch.cat([drawn.pixels[number] for number in known.tolist()])
    prompts = Prompts(
        input_ids=drawn.input_ids[first, : drawn.split],
        mask=drawn.mask[first, : drawn.split],
        pixel_values=pixels if len(pixels) else None,
        image_grid_thw=torch.cat([drawn.grids[number] for number in known.tolist()]) if len(pixels) else None,
    )
    scored = drawn.mask[rows, drawn.split :]
    arguments = pack(shared_prefix.core_of(model), prompts, drawn.input_ids[rows, drawn.split :], scored, prompt_of)
    if not call:
        return None
    outputs = model(**arguments, fused_lm_head=True)
    return tuple(unpack(values, arguments["labels"], scored) for values in (outputs.log_probs, outputs.entropy))


def gradients(model, drawn, forward):
    """Of a sum in which every token's log-prob and entropy has a weight of its own."""
    model.zero_grad(set_to_none=True)
    logps, entropies = forward(model, drawn)
    ((logps + 0.1 * entropies) * drawn.weights).sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_equal(found, expected, *, within=1e-5):
    assert found.keys() == expected.keys() and expected
    whole = torch.cat([one.flatten() for one in expected.values()]).norm()
    assert whole > 0.1
    for name, gradient in expected.items():
        # Of parameters whose gradient is rounding itself, as a bias of the keys, relative to the others.
        assert (found[name] - gradient).norm() <= within * max(gradient.norm(), 1e-2 * whole), name


MODELS = {name: build(name) for name in ARCHITECTURES}
GROUPS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(seed=st.integers(0, 2**31), group_sizes=GROUPS)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_log_probs_entropies_and_gradients_are_those_of_separate_rows(architecture, seed, group_sizes):
    model, drawn = MODELS[architecture], draw(seed, group_sizes=group_sizes)
    with torch.no_grad():
        for found, expected in zip(shared(model, drawn), stock(model, drawn), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_equal(gradients(model, drawn, shared), gradients(model, drawn, stock))


def test_the_head_sees_nothing_of_prompts(monkeypatch):
    model, drawn = build("qwen2_vl"), draw(4, group_sizes=[3, 2])
    seen, apply = [], ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        ChunkedLogProbFunction, "apply", lambda hidden, *rest: seen.append(len(hidden)) or apply(hidden, *rest)
    )
    with torch.no_grad():
        found = shared(model, drawn)
        assert not model.model._forward_hooks  # with one, decoding would go a slower way
        again = stock(model, drawn)
    rows, width = drawn.input_ids.shape
    assert seen == [int(drawn.mask[:, drawn.split :].sum()) + len(drawn.prompt_of) - 1, rows * (width - 1)]
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_call_that_never_came_leaves_the_next_one_alone():
    model, drawn = build("qwen2_vl"), draw(4, group_sizes=[3, 2])
    with torch.no_grad():
        before = stock(model, drawn)
        shared(model, drawn, call=False)
        after = stock(model, drawn)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not model.model._forward_hooks


def test_a_completion_without_a_scored_token_alone_has_no_gradient():
    model, drawn = build("qwen2_vl"), draw(6, group_sizes=[1])
    drawn.mask[:, drawn.split :] = 0
    assert not any(one.any() for one in gradients(model, drawn, shared).values())


def test_the_tokens_of_a_completion_matter_to_it_alone():
    """The comparison above would not see a leak that trl's rows have as well."""
    model, drawn = MODELS["qwen2_vl"], draw(3, group_sizes=[3, 2])
    with torch.no_grad():
        before, _ = shared(model, drawn)
        row = int(drawn.mask[:, drawn.split :].sum(dim=1).argmax())
        drawn.input_ids[row, drawn.split] = (drawn.input_ids[row, drawn.split] - FIRST_WORD + 1) % 7 + FIRST_WORD
        after, _ = shared(model, drawn)
    differs = (before != after).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [row]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_group_that_is_split_over_micro_batches_is_still_right(architecture):
    model, drawn = MODELS[architecture], draw(5, group_sizes=[4, 3])
    whole = gradients(model, drawn, shared)
    model.zero_grad(set_to_none=True)
    for rows in (torch.tensor([0, 4, 2]), torch.tensor([5, 1, 3, 6])):
        logps, entropies = shared(model, drawn, rows)
        ((logps + 0.1 * entropies) * drawn.weights[rows]).sum().backward()
    parts = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    assert_equal(parts, whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_with_gradient_checkpointing(architecture, use_reentrant):
    model, drawn = build(architecture), draw(7, group_sizes=[3, 2])
    expected = gradients(model, drawn, stock)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    assert_equal(gradients(model, drawn, shared), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_a_frozen_vision_tower(architecture):
    model, drawn = build(architecture), draw(7, group_sizes=[3, 2])
    model.model.visual.requires_grad_(False)
    found = gradients(model, drawn, shared)
    assert not any("visual" in name for name in found)
    assert_equal(found, gradients(model, drawn, stock))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_adapters(architecture):
    core, drawn = build(architecture), draw(7, group_sizes=[3, 2])
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)", init_lora_weights=False)
    model = get_peft_model(core, lora)
    found = gradients(model, drawn, shared)
    assert found and all("lora" in name for name in found)
    assert_equal(found, gradients(model, drawn, stock))


def test_in_bfloat16_it_differs_by_no_more_than_trl_does_from_itself():
    """The same rows in another order, or fewer at a time, are rounded otherwise too."""
    drawn = draw(11, group_sizes=[4, 4, 4], longest=40)
    exact, model = build("qwen2_vl"), build("qwen2_vl").to(torch.bfloat16)
    drawn.pixels = [one.bfloat16().float() for one in drawn.pixels]
    with torch.no_grad():
        for weight, rounded in zip(exact.parameters(), model.parameters(), strict=True):
            weight.copy_(rounded)
    expected = gradients(exact, drawn, stock)

    def error(found):
        off = sum((found[name].float() - one).square().sum() for name, one in expected.items()).sqrt()
        return float(off / torch.cat([one.flatten() for one in expected.values()]).norm())

    own = [error(gradients(model, drawn, stock))]
    for seed in range(4):
        order = torch.randperm(len(drawn.prompt_of), generator=torch.Generator().manual_seed(seed))
        moved = Drawn(
            *(drawn.input_ids[order], drawn.mask[order], drawn.width, drawn.prompt_of[order]),
            *(drawn.pixels, drawn.grids, drawn.weights[order]),
        )
        own.append(error(gradients(model, moved, stock)))
    assert error(gradients(model, drawn, shared)) < 1.25 * max(own)


def test_attention_without_a_layout_is_what_it_was():
    model, drawn = MODELS["qwen2_vl"], draw(13, group_sizes=[2, 2])
    before = gradients(build("qwen2_vl"), drawn, stock)
    shared(model, drawn)
    after = gradients(model, drawn, stock)
    assert all(torch.equal(after[name], one) for name, one in before.items())


def test_a_prompt_that_ends_with_an_image_is_refused():
    model, drawn = MODELS["qwen2_vl"], draw(13, group_sizes=[2])
    drawn.input_ids[:, drawn.split - 1] = IMAGE
    with pytest.raises(ValueError, match="ends with an image"):
        shared(model, drawn)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers with a sliding window are not known"),
        ({"_attn_implementation": "eager"}, "attention 'eager' is not known to it"),
    ],
)
def test_what_cannot_be_shared_is_named(changed, reason):
    model = build("qwen2_vl")
    assert unknown(model) is None
    for name, value in changed.items():
        setattr(model.config.text_config, name, value)
    assert reason in (unknown(model) or "")


@pytest.mark.parametrize("module", ["Qwen2VLAttention", "Dropout"])
def test_what_is_drawn_for_each_row_is_not_shared(module):
    model = build("qwen2_vl")
    assert unshared(model) is None
    if module == "Dropout":
        model.model.language_model.layers[1].mlp.down_proj = torch.nn.Sequential(torch.nn.Dropout(0.1))
    else:
        model.model.language_model.layers[1].self_attn.attention_dropout = 0.1
    assert unknown(model) is None
    assert unshared(model) == "what dropout leaves out must be drawn anew for each completion"


def test_an_unknown_architecture_is_named():
    model = build("qwen2_vl")
    model.model.__class__ = type("OtherModel", (type(model.model),), {})
    assert unknown(model) == "Qwen2VLForConditionalGeneration is not known to it"


# The kernels that only a GPU runs fast, held to the one that every test above has run.


@dataclass
class Attention:
    """The inputs of one layer's attention on a packed row."""

    layout: Layout
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    def by(self, kernel, function):
        inputs = [one.clone().requires_grad_() for one in (self.query, self.key, self.value)]
        found = kernel(function, SimpleNamespace(is_causal=True, num_key_value_groups=2), *inputs, self.layout)
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
        return found.detach(), torch.autograd.grad((found * weights).sum(), inputs)


@pytest.fixture
def attention():
    prompt_lengths, own_lengths = torch.tensor([5, 1, 8]), torch.tensor([3, 1, 4, 2, 6])
    layout = Layout(prompt_lengths=prompt_lengths, own_lengths=own_lengths, prompt_of=torch.tensor([2, 0, 0, 1, 2]))
    size = int(prompt_lengths.sum() + own_lengths.sum())
    torch.manual_seed(0)
    return Attention(layout, *(torch.randn(1, heads, size, 16) for heads in (4, 2, 2)))


def sdpa(*inputs, **arguments):
    return shared_prefix.ALL_ATTENTION_FUNCTIONS["sdpa"](*inputs, **arguments)


def flex(_module, query, key, value, mask):
    """FlexAttention as it is defined, uncompiled; it has no backward pass on a CPU, so that its mask is used there."""
    size = query.shape[2]
    sees = create_mask(mask.mask_mod, None, None, size, size, device="cpu")
    keys, values = (one.repeat_interleave(2, dim=1) for one in (key, value))
    found = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=sees)
    with torch.no_grad():
        own = flex_attention(query.detach(), key.detach(), value.detach(), block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(own, found.detach(), rtol=1e-5, atol=1e-5)
    return found.transpose(1, 2), None


def flash(
    _module, query, key, value, mask, *, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, is_causal=True
):
    """What FlashAttention's kernel of variable lengths is documented to compute."""
    assert mask is None and is_causal
    assert cu_seq_lens_q.dtype == cu_seq_lens_k.dtype == torch.int32
    rows = []
    for index in range(len(cu_seq_lens_q) - 1):
        own = slice(int(cu_seq_lens_q[index]), int(cu_seq_lens_q[index + 1]))
        seen = slice(int(cu_seq_lens_k[index]), int(cu_seq_lens_k[index + 1]))
        num_own, num_seen = own.stop - own.start, seen.stop - seen.start
        assert num_own <= max_length_q and num_seen <= max_length_k
        bottom_right = torch.ones(num_own, num_seen, dtype=torch.bool).tril(num_seen - num_own)
        keys, values = (one[:, :, seen].repeat_interleave(2, dim=1) for one in (key, value))
        rows.append(
            torch.nn.functional.scaled_dot_product_attention(query[:, :, own], keys, values, attn_mask=bottom_right)
        )
    assert cu_seq_lens_q[-1] == query.shape[2] and cu_seq_lens_k[-1] == key.shape[2]
    return torch.cat(rows, dim=2).transpose(1, 2), None


@pytest.mark.parametrize(("name", "function"), [("flex_attention", flex), ("flash_attention_2", flash)])
def test_the_kernels_agree(attention, name, function):
    found, found_gradients = attention.by(shared_prefix._KERNELS[name], function)
    expected, expected_gradients = attention.by(shared_prefix._KERNELS["sdpa"], sdpa)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
