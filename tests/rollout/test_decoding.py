"""Each token after the prompt, layer by layer or by the model's own forward, against one forward without a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from trl.trainer.utils import add_fused_lm_head

from visual_r1.examples import Example
from visual_r1.models import Adapter, Policy
from visual_r1.models import _with_adapter as with_adapter
from visual_r1.rollout import decoding
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.plain import plain_logps
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts

DRAWN = Sampling(max_completion_length=10)
GREEDY = replace(DRAWN, temperature=0.0)
LORA = Adapter(rank=2, alpha=4, dropout=0.5, target_modules=r".*language_model.*(_proj)")

TEXT = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 512},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2},
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
}
VISION = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "depth": 2, "num_heads": 2}
ARCHITECTURES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, {"embed_dim": 32, "hidden_size": 64}),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        {
            **{"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48},
            **{"window_size": 56, "fullatt_block_indexes": [1]},
        },
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        {
            **{"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 64},
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}
KNOWN = ("qwen2_vl", "qwen2_5_vl")


def example(words, *sizes):
    shades = (Image.linear_gradient("L").point(lambda level, shade=40 * n: (level + shade) % 256) for n in range(9))
    images = tuple(shade.resize(size).convert("RGB") for size, shade in zip(sizes, shades, strict=False))
    question = "chair " * words
    return Example(id=str(sizes), images=images, question=question, choices=("a", "b"), solution="A", category="x")


EXAMPLES = (
    example(1, (56, 84)),
    example(9, (140, 70), (56, 56), (28, 140)),
    example(4),  # no image
    example(2, (84, 84), (112, 56)),
)


@pytest.fixture(scope="module")
def build(policies):
    """Builds a small random policy of an architecture, with nano's tokenizer, whose completions end now and then."""

    def of(architecture, *, adapter=None):
        nano = policies["base"]
        config_class, model_class, vision = ARCHITECTURES[architecture]
        config = nano.model.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = {name: getattr(config, name) for name in names}
        text = {**TEXT, "vocab_size": config.text_config.vocab_size}
        torch.manual_seed(0)
        model = model_class(config_class(text_config=text, vision_config={**VISION, **vision}, **ids)).eval()
        model.generation_config.eos_token_id = list(range(40))  # of 704 equally strange tokens
        model.generation_config.pad_token_id = nano.tokenizer.pad_token_id
        if adapter is not None:
            model = with_adapter(model, adapter)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:  # 0 at first, as if there were no adapter
                        weight.normal_(0, 0.3)
        return Policy(model=model, processor=nano.processor, style=nano.style, source=nano.source, adapter=adapter)

    return of


def generate(policy, sampling, *, num_generations=3, seed=0, examples=EXAMPLES):
    conversations = [policy.style.messages(policy.fitted(one)) for one in examples]
    with TransformersEngine(batch_size=64).serving(policy) as sampler:
        return sampler.generate(conversations, num_generations=num_generations, sampling=sampling, seed=seed)


def tokens(groups):
    return [[completion.token_ids for completion in group] for group in groups]


def logps(groups):
    return torch.tensor([one for group in groups for completion in group for one in completion.logps])


def by_its_own_forward(model):
    """Hooks make a layer one of those that must be called."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    return core.model.language_model.layers[0].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logps_are_those_of_one_forward_over_all_tokens(build, architecture, adapter):
    policy = build(architecture, adapter=adapter)
    policy.model.train()
    groups = generate(policy, DRAWN)
    assert policy.model.training
    policy.model.eval()
    assert len({len(group[0].prompt_ids) for group in groups}) == len(EXAMPLES)  # all but one are padded
    lengths = {len(completion.token_ids) for group in groups for completion in group}
    assert max(lengths) == 10 and len(lengths) > 3
    for one, group in zip(EXAMPLES, groups, strict=True):
        for completion in group:
            expected = plain_logps(policy, policy.style.messages(policy.fitted(one)), completion.token_ids)
            torch.testing.assert_close(
                torch.tensor(completion.logps), torch.tensor(expected), rtol=0, atol=1e-5, msg=one.id
            )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_are_those_of_transformers(build, architecture):
    policy = build(architecture)
    conversations = [policy.style.messages(policy.fitted(one)) for one in EXAMPLES]
    inputs = encode_prompts(policy, conversations)
    expected = policy.model.generate(
        **inputs,
        max_new_tokens=GREEDY.max_completion_length,
        do_sample=False,
        eos_token_id=list(policy.end_token_ids),
        suppress_tokens=list(policy.image_token_ids),
    )[:, inputs["input_ids"].shape[1] :].tolist()
    for row, [completion] in zip(expected, generate(policy, GREEDY, num_generations=1), strict=True):
        assert list(completion.token_ids) == row[: len(completion.token_ids)]


@pytest.mark.parametrize("architecture", KNOWN)
def test_both_ways_draw_the_same_tokens(build, architecture, capsys):
    policy = build(architecture)
    in_layers = generate(policy, DRAWN, num_generations=8, seed=1)
    assert not capsys.readouterr().err
    hook = by_its_own_forward(policy.model)
    in_forwards = generate(policy, DRAWN, num_generations=8, seed=1)
    hook.remove()
    assert "DecoderLayer has hooks: each token of a rollout takes the model's own forward" in capsys.readouterr().err
    assert tokens(in_layers) == tokens(in_forwards)
    assert not torch.equal(logps(in_layers), logps(in_forwards))  # so they are two ways
    torch.testing.assert_close(logps(in_layers), logps(in_forwards), rtol=0, atol=1e-5)


def test_an_unknown_architecture_is_named_once(build, capsys):
    decoding._say_once.cache_clear()
    policy = build("qwen3_vl")
    for _ in range(2):
        generate(policy, DRAWN, examples=EXAMPLES[:1])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Qwen3VLForConditionalGeneration is none of Qwen2-VL's or Qwen2.5-VL's modules")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: vars(text).update(has_sliding_layers=True), "attention sees a window"),
        (lambda text: setattr(text.rotary_emb, "rope_type", "dynamic"), "rotary embeddings are of type dynamic"),
        (
            lambda text: setattr(text.layers[1], "forward", text.layers[1].forward),
            "the forward of Qwen2VLDecoderLayer has been replaced",
        ),
        (
            lambda text: setattr(text.layers[0].self_attn, "__class__", type("Odd", (torch.nn.Module,), {})),
            "Odd is none of Qwen2-VL's or Qwen2.5-VL's modules",
        ),
    ],
)
def test_what_the_layers_alone_would_miss_takes_the_forward(build, change, reason):
    model = build("qwen2_vl").model
    assert decoding._unknown(model) is None
    change(model.model.language_model)
    assert decoding._unknown(model) == reason


def test_trls_own_forward_is_no_obstacle(build, capsys):
    policy = build("qwen2_vl", adapter=LORA)
    expected = generate(policy, DRAWN)
    add_fused_lm_head(policy.model.get_base_model())
    assert tokens(generate(policy, DRAWN)) == tokens(expected)
    assert not capsys.readouterr().err


def test_room_grows_with_the_completions(build, monkeypatch):
    policy = build("qwen2_vl")
    expected = generate(policy, DRAWN)
    for room in (1, 3):  # 1, 2, 4, 8, 10 and 3, 6, 10 tokens
        monkeypatch.setattr(decoding, "_ROOM", room)
        assert tokens(generate(policy, DRAWN)) == tokens(expected)


@pytest.fixture
def accelerate_anew():
    """Accelerate keeps one precision a process, whichever trainer of this process came first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("accelerate_anew")
def test_a_trainers_autocast_reaches_the_layers(build):
    policy = build("qwen2_vl")
    exact = generate(policy, DRAWN)
    wrapped = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(policy.model, evaluation_mode=True)
    seen = []
    hook = wrapped.model.language_model.layers[1].mlp.down_proj.register_forward_hook(
        lambda _module, _inputs, states: seen.append(states.dtype)
    )
    in_layers = generate(policy, GREEDY)
    assert len(seen) > 5 and set(seen) == {torch.bfloat16}
    hook.remove()
    assert not torch.allclose(logps(exact)[:4], logps(in_layers)[:4], rtol=0, atol=1e-6)
    slow = by_its_own_forward(policy.model)
    in_forwards = generate(policy, GREEDY)
    slow.remove()
    first = min(len(in_layers[0][0].logps), len(in_forwards[0][0].logps), 3)
    torch.testing.assert_close(in_layers[0][0].logps[:first], in_forwards[0][0].logps[:first], rtol=0, atol=0.1)


def exact_pairs(policy, sampling):
    """The probability of every first and second token, by plain forwards and cuts written out anew."""

    def probabilities(prefix):
        conversation = policy.style.messages(policy.fitted(EXAMPLES[0]))
        inputs = dict(encode_prompts(policy, [conversation]))
        added = torch.tensor([prefix], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], added], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(added)], dim=1)
        with torch.no_grad():
            logits = policy.model(**inputs).logits[0, -1].double() / sampling.temperature
        weights = {token: value for token, value in enumerate(logits.exp().tolist())}
        for token in policy.image_token_ids:
            del weights[token]
        ordered = sorted(weights, key=lambda token: -weights[token])[: sampling.top_k or None]
        total, before, kept = sum(weights[token] for token in ordered), 0.0, {}
        for token in ordered:
            if before < sampling.top_p:
                kept[token] = weights[token]
            before += weights[token] / total
        return {token: weight / sum(kept.values()) for token, weight in kept.items()}

    pairs = {}
    for first, share in probabilities([]).items():
        if first in policy.end_token_ids:
            pairs[first,] = share
        else:
            pairs |= {(first, second): share * other for second, other in probabilities([first]).items()}
    return pairs


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(max_completion_length=2, top_k=6), id="top-k"),
        pytest.param(Sampling(max_completion_length=2, temperature=0.6, top_k=9, top_p=0.8), id="all-cuts"),
        pytest.param(Sampling(max_completion_length=2, temperature=0.8, top_p=0.3), id="top-p"),
    ],
)
def test_pairs_of_tokens_are_drawn_as_often_as_is_likely(build, sampling):
    policy = build("qwen2_vl")
    expected = exact_pairs(policy, sampling)
    assert sum(expected.values()) == pytest.approx(1) and len(expected) > 8
    num_draws = 4000
    [group] = generate(policy, sampling, num_generations=num_draws, seed=5, examples=EXAMPLES[:1])
    counts = dict.fromkeys(expected, 0)
    for completion in group:
        counts[completion.token_ids] += 1  # a pair that may not be drawn has no count
    # Rare pairs together: the approximation needs at least 5 of each kind.
    rare = [pair for pair, share in expected.items() if share * num_draws < 5]
    kinds = [([pair], expected[pair]) for pair in expected if pair not in rare]
    if rare:
        kinds.append((rare, sum(expected[pair] for pair in rare)))
    statistic = sum(
        (sum(counts[pair] for pair in pairs) - share * num_draws) ** 2 / (share * num_draws) for pairs, share in kinds
    )
    # Wilson and Hilferty's approximation: its cube root is nearly normal. Once in 30,000 seeds it is beyond 4.
    freedom = len(kinds) - 1
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert deviation < 4
