"""vLLM in this process against the trainer's own engine: tokens, log-probs, new weights, caches, a learning curve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
import torch

from tests.engines.vllm_reference import (
    EXAMPLES,
    GREEDY,
    ban_worthy,
    by_transformers,
    conversations,
    example_with,
    first_token_probabilities,
    fits,
    generate,
    largest_difference,
    plain_logps,
    tokens,
)
from visual_r1.datasets.spatial import Spatial
from visual_r1.evaluation import evaluate
from visual_r1.methods.grpo import Grpo
from visual_r1.metrics.reflection import Reflection
from visual_r1.models import Adapter, ModelSource, load_policy
from visual_r1.probe import Probe
from visual_r1.rewards.accuracy import ChoiceAccuracy
from visual_r1.rewards.format import WellFormed
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import EngineError, Sampling
from visual_r1.rollout.prompt_tokens import check_seen, prompt_tokens
from visual_r1.rollout.transformers import TransformersEngine
from visual_r1.rollout.undisturbed import undisturbed
from visual_r1.rollout.vllm_colocate import VllmColocateEngine
from visual_r1.rollout.vllm_setup import TOKENS_AT_ONCE
from visual_r1.rollout.weights import policy_weights

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    kind: ModelSource(name=kind, path=str(ROOT / "models" / "seed0" / f"nano-{kind}"), style=kind)
    for kind in ("base", "instruct")
}
WARM = replace(GREEDY, temperature=1.0)


def new_engine(**replaced):
    arguments = {"bf16": False, "push_changed_only": True, **replaced}
    return VllmColocateEngine(
        batch_size=64, max_model_length=512, kv_cache_gib=0.25, cuda_graphs=False, sleep=False, **arguments
    )


@pytest.fixture(scope="module")
def policies():
    """The shipped nanos; nobody may change their weights."""
    return {kind: load_policy(source) for kind, source in SOURCES.items()}


@pytest.fixture
def policy():
    """The shipped base model, whose weights a test may change."""
    return load_policy(SOURCES["base"])


@pytest.fixture(scope="module")
def engine():
    engine = new_engine()
    yield engine
    engine.close()


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_greedy_tokens_and_logps_are_those_of_transformers(engine, policies, kind):
    ours, theirs = generate(engine, policies[kind]), by_transformers(policies[kind])
    assert largest_difference(ours, theirs) < 1e-4
    assert [group[0].prompt_ids for group in ours] == [group[0].prompt_ids for group in theirs]
    assert [group[0].is_truncated for group in ours] == [group[0].is_truncated for group in theirs]
    assert len({token for [completion] in ours for token in completion.token_ids}) > 3


def test_one_engine_serves_all_policies_of_an_architecture(engine, policies):
    generate(engine, policies["base"])
    running = engine._running
    generate(engine, policies["instruct"])
    assert engine._running is running


@pytest.mark.parametrize(
    ("sampling", "temperature"),
    [(WARM, 1.0), (replace(WARM, temperature=0.7), 0.7), (replace(WARM, temperature=1.3, top_k=5, top_p=0.8), 1.3)],
    ids=["1", "0.7", "before-the-cuts"],
)
def test_logps_are_the_trainers_at_the_sampling_temperature(engine, policies, sampling, temperature):
    policy = policies["base"]
    groups = generate(engine, policy, sampling, num_generations=3, seed=5)
    assert groups[0][0].token_ids != groups[0][1].token_ids
    for conversation, group in zip(conversations(policy), groups, strict=True):
        for completion in group:
            expected = plain_logps(policy, conversation, completion, temperature)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=0, atol=1e-4)


def test_prefixes_are_continued_as_by_transformers(engine, policies):
    policy = policies["base"]
    texts = (" I think it is", " The light is nice.", " Wait, let me check again.", "")
    prefixes = [policy.tokenizer(text)["input_ids"] for text in texts]
    ours, theirs = generate(engine, policy, prefixes=prefixes), by_transformers(policy, prefixes=prefixes)
    assert largest_difference(ours, theirs) < 1e-4
    assert [group[0].prompt_ids for group in ours] == [group[0].prompt_ids for group in theirs]
    assert tokens(ours) != tokens(generate(engine, policy))


@torch.no_grad()
def change(policy, part):
    generator = torch.Generator().manual_seed(0)
    changed = []
    for name, parameter in policy.model.named_parameters():
        if part in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.3 * parameter.std().nan_to_num(0.1) * noise.to(parameter.device)
            changed.append(name)
    assert changed


@pytest.mark.parametrize("part", ["visual", "embed_tokens", "layers", "norm"])
def test_new_weights_arrive_whatever_part_was_trained(engine, policy, part):
    assert policy.model.lm_head.weight is policy.model.get_input_embeddings().weight  # tied: both must change
    before = generate(engine, policy)
    change(policy, part)
    after = generate(engine, policy)  # of the same prompts and images, which the engine has seen
    assert largest_difference(after, by_transformers(policy)) < 1e-4
    first = [(one.logps[0], other.logps[0]) for [one], [other] in zip(before, after, strict=True)]
    assert max(abs(one - other) for one, other in first) > 1e-3


def pushed(engine, policy):
    """How many tensors one visit gives to the engine."""
    with engine.serving(policy) as sampler:
        return sampler.pushed.num_tensors


def trained_by_a_fused_step(policy):
    """The names of what a step has written to, as PyTorch's books do not say it."""
    trained = {name: one for name, one in policy.model.named_parameters() if one.requires_grad}
    for number, one in enumerate(trained.values()):
        generator = torch.Generator().manual_seed(number)
        one.grad = torch.randn(one.shape, generator=generator).to(one.device)
    torch.optim.AdamW(trained.values(), lr=0.01, fused=True).step()
    for one in trained.values():
        one.grad = None
    return set(trained)


FROZEN = {
    "nothing": (),
    "vision-alone": ("visual",),
    "embeddings-alone": ("embed_tokens", "lm_head"),
    "layers-alone": (".layers.",),
}


@pytest.mark.parametrize("parts", FROZEN.values(), ids=FROZEN)
def test_only_what_was_trained_is_pushed_and_the_engine_is_the_trainer(engine, policy, parts):
    total = pushed(engine, policy)
    if parts:
        for name, one in policy.model.named_parameters():
            one.requires_grad_(any(part in name for part in parts))
    assert pushed(engine, policy) == sum(not one.requires_grad for one in policy.model.parameters())  # just frozen
    for _ in range(2):
        trained = trained_by_a_fused_step(policy)
        assert pushed(engine, policy) == len(trained) <= total
        assert pushed(engine, policy) == 0
        ours = generate(engine, policy)
        assert largest_difference(ours, by_transformers(policy)) < 1e-4


def test_what_is_loaded_into_a_model_arrives_and_so_does_another_policy(engine, policy, policies):
    total = pushed(engine, policy)
    plain = generate(engine, policy)
    policy.model.requires_grad_(False)
    pushed(engine, policy)
    policy.model.load_state_dict(policies["instruct"].model.state_dict())
    loaded = generate(engine, policy)
    assert largest_difference(loaded, by_transformers(policy)) < 1e-4
    # Two policies may well say the same, and not with the same probability.
    assert tokens(loaded) != tokens(plain) or largest_difference(loaded, plain) > 1e-3
    assert pushed(engine, policies["base"]) == total
    assert largest_difference(generate(engine, policies["base"]), plain) < 1e-6


def test_all_weights_are_pushed_each_time_where_it_is_asked_for(policy):
    engine = new_engine(push_changed_only=False)
    try:
        assert pushed(engine, policy) == pushed(engine, policy) > 1
    finally:
        engine.close()


def test_without_a_reset_an_image_stays_as_the_old_weights_saw_it(engine, policy):
    """What stock trl 1.16 does after each update; the reset is ours."""
    before = generate(engine, policy)
    change(policy, "visual")
    running = engine._running
    with undisturbed():
        running.llm.collective_rpc("take_weights", args=(policy_weights(policy), True))
        running.llm.reset_prefix_cache()  # trl's only one
        outputs = running.llm.generate(requests(policy), greedy_parameters(policy), use_tqdm=False)
    assert [tuple(output.outputs[0].token_ids) for output in outputs] == [group[0].token_ids for group in before]
    assert largest_difference(generate(engine, policy), by_transformers(policy)) < 1e-4


def requests(policy, *, expanded=False):
    prompts = [prompt_tokens(policy, conversation) for conversation in conversations(policy)]
    return [
        {
            "prompt_token_ids": list(prompt.expanded if expanded else prompt.collapsed),
            "multi_modal_data": {"image": list(prompt.images)},
        }
        for prompt in prompts
    ]


def greedy_parameters(policy):
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0,
        max_tokens=GREEDY.max_completion_length,
        stop_token_ids=list(policy.end_token_ids),
        ignore_eos=True,
        logit_bias=dict.fromkeys(policy.image_token_ids, -100.0),
        logprobs=0,
    )


def test_images_that_stand_expanded_are_expanded_again_and_ours_are_not(engine, policies):
    """Stock trl 1.16 hands vLLM the trainer's ids beside the images: silently other prompts. Ours would refuse."""
    policy = policies["base"]
    groups = generate(engine, policy)
    assert engine._running is not None
    with undisturbed():
        stock = engine._running.llm.generate(requests(policy, expanded=True), greedy_parameters(policy), use_tqdm=False)
    placeholder = policy.model.config.image_token_id
    for conversation, output, [ours] in zip(conversations(policy), stock, groups, strict=True):
        prompt = prompt_tokens(policy, conversation)
        assert ours.prompt_ids == prompt.expanded
        num_images, num_tokens = len(prompt.images), prompt.expanded.count(placeholder)
        twice = output.prompt_token_ids.count(placeholder)
        assert num_tokens < twice <= 2 * num_tokens - 1 or num_images > 1 and twice != num_tokens
        with pytest.raises(EngineError, match=r"saw a prompt of \d+ tokens, the trainer has \d+"):
            check_seen(output.prompt_token_ids, prompt.expanded, engine="vLLM")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_placeholder_of_an_image_is_ever_drawn(engine, policy, temperature):
    ban_worthy(policy)
    groups = generate(
        engine, policy, replace(GREEDY, temperature=temperature), num_generations=4, examples=EXAMPLES[:1]
    )
    drawn = {token for group in groups for completion in group for token in completion.token_ids}
    assert drawn and not drawn & set(policy.image_token_ids)
    assert groups[0][0].logps[0] < -5  # the ban has decided it, and the log-prob is the one before it


def test_truncation_and_end_tokens(engine, policy):
    # As an instruct checkpoint may: a second end, which the tokenizer does not call one.
    [period] = policy.tokenizer(".")["input_ids"]
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, period]
    assert len(policy.end_token_ids) == 2
    groups = generate(engine, policy, replace(WARM, max_completion_length=8), num_generations=8, seed=1)
    completions = [completion for group in groups for completion in group]
    for completion in completions:
        *body, last = completion.token_ids
        assert not set(body) & set(policy.end_token_ids)
        assert completion.is_truncated == (last not in policy.end_token_ids)
        assert len(completion.logps) == len(completion.token_ids)
        assert len(completion.token_ids) == 8 or not completion.is_truncated
    assert {completion.is_truncated for completion in completions} == {True, False}
    assert period in {completion.token_ids[-1] for completion in completions}


def test_more_prompt_tokens_than_fit_at_once_are_drawn_by_their_own_seeds(engine, policies):
    """Computed in parts, a seeded prompt would fail on a CPU: see TOKENS_AT_ONCE."""
    policy = policies["base"]
    # None begins as another does: what one has computed is not computed again.
    examples = [example_with(*[(224, 224)] * 5, shade=number) for number in range(40)]
    groups = generate(engine, policy, WARM, examples=examples, seed=2)
    assert sum(len(group[0].prompt_ids) for group in groups) > TOKENS_AT_ONCE
    assert tokens(generate(engine, policy, WARM, examples=examples[:2], seed=2)) == tokens(groups)[:2]


def test_a_seed_decides_the_completions_and_nothing_else_is_touched(engine, policies):
    policy = policies["base"]
    before, threads = torch.get_rng_state(), torch.set_num_threads
    with engine.serving(policy) as sampler:
        first, again, other = (
            tokens(sampler.generate(conversations(policy), num_generations=3, sampling=WARM, seed=seed))
            for seed in (1, 1, 2)
        )
    assert first == again != other
    assert tokens(generate(engine, policy, WARM, num_generations=3, seed=1)) == first
    assert any(len(set(group)) > 1 for group in first)
    assert torch.equal(torch.get_rng_state(), before) and torch.set_num_threads is threads


def test_greedy_groups_are_whole(engine, policies):
    groups = generate(engine, policies["base"], num_generations=3)
    assert [len(group) for group in groups] == [3] * len(EXAMPLES)
    assert all(len(set(group)) == 1 for group in tokens(groups))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_completion_length=1),
        Sampling(max_completion_length=1, temperature=1.5, top_k=8),
        Sampling(max_completion_length=1, temperature=1.2, top_p=0.8),
    ],
    ids=["all", "top-k", "top-p"],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(engine, policies, sampling):
    policy = policies["base"]
    [group] = generate(engine, policy, sampling, num_generations=400, examples=EXAMPLES[:1], seed=7)
    probabilities = first_token_probabilities(policy, conversations(policy)[0], sampling)
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in group]), minlength=len(probabilities))
    assert fits(counts, probabilities) > 1e-3


def test_it_starts_where_a_trainer_has_taken_most_of_a_gpu(engine, policies):
    """As vLLM's worker asks on a GPU, where it would otherwise refuse to start unless 92% are free."""
    from vllm.v1.worker.utils import request_memory

    generate(engine, policies["base"])
    free = SimpleNamespace(device_="cuda:0", total_memory=80 * 2**30, free_memory=20 * 2**30)
    request_memory(free, engine._running.llm.llm_engine.vllm_config.cache_config)


def test_a_prompt_that_leaves_no_room_is_refused(engine, policies):
    with pytest.raises(EngineError, match=r"max_model_length=512: a prompt of \d+ tokens and a completion of up to"):
        generate(engine, policies["base"], replace(GREEDY, max_completion_length=500))


def test_an_adapter_is_served_merged(engine):
    lora = Adapter(rank=4, alpha=8, dropout=0.5, target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)")
    policy = load_policy(SOURCES["base"], adapter=lora)
    plain = generate(engine, policy)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator(parameter.device).manual_seed(0))
    learned = generate(engine, policy)
    assert largest_difference(learned, by_transformers(policy)) < 1e-4
    assert plain[0][0].logps != learned[0][0].logps
    assert pushed(engine, policy) == 0
    adapted = {name.rpartition(".lora_")[0] for name in trained_by_a_fused_step(policy)}
    assert pushed(engine, policy) == len(adapted) > 1  # and not what nobody trains
    assert largest_difference(generate(engine, policy), by_transformers(policy)) < 1e-4


def test_the_probe_and_the_benchmark_read_the_same_answers(engine):
    policy = load_policy(SOURCES["base"])
    sampling = Sampling(max_completion_length=96, temperature=0.0)
    reports, probes = [], []
    for one in (engine, TransformersEngine(batch_size=64)):
        reports.append(
            evaluate(
                policy,
                one,
                Spatial(split="test", size=12),
                benchmark="spatial",
                sampling=sampling,
                reflection=Reflection(phrases=("wait",)),
            )
        )
        rewards = (WeightedReward(name="accuracy", weight=1.0, function=ChoiceAccuracy()),)
        probe = Probe(
            examples=Spatial(split="probe", size=8),
            engine=one,
            sampling=sampling,
            metrics=(),
            rewards=rewards,
            every_steps=1,
        )
        probes.append(probe.measure(policy)[0])
    ours, theirs = reports
    assert [rollout.completion for rollout in ours.rollouts] == [rollout.completion for rollout in theirs.rollouts]
    assert ours.summary() == theirs.summary() and probes[0] == probes[1]


def test_bfloat16_is_close(policies):
    engine = new_engine(bf16=True)
    try:
        policy = policies["base"]
        groups = generate(engine, policy, WARM, num_generations=4)
    finally:
        engine.close()
    differences = torch.cat(
        [
            (plain_logps(policy, conversation, completion) - torch.tensor(completion.logps)).abs()
            for conversation, group in zip(conversations(policy), groups, strict=True)
            for completion in group
        ]
    )
    print(f"bfloat16: mean {differences.mean():.4f}, max {differences.max():.4f}")
    assert 1e-4 < differences.mean() < 0.1  # another arithmetic, the same model


def test_another_architecture_starts_another_engine(engine, tmp_path, policies):
    generate(engine, policies["base"])
    running = engine._running
    folder = tmp_path / "other"
    shutil.copytree(SOURCES["base"].path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(config))
    other = load_policy(replace(SOURCES["base"], path=str(folder)))
    assert largest_difference(generate(engine, other), by_transformers(other)) < 1e-4
    assert engine._running is not running


NUM_STEPS = 6


def curve(make_context, trl_arguments, engine, seed):
    rewards = (
        WeightedReward(name="accuracy", weight=1.0, function=ChoiceAccuracy()),
        WeightedReward(name="format", weight=1.0, function=WellFormed()),
    )
    context = make_context(
        engine=engine, rewards=rewards, seed=seed, examples=Spatial(split="train", size=2000), rollouts_every_steps=1000
    )
    context = replace(context, probe=replace(context.probe, engine=engine, every_steps=1000))
    trl = trl_arguments(
        num_generations=8,
        max_completion_length=48,
        optim="adamw_torch",
        learning_rate=3e-4,
        max_steps=NUM_STEPS,
    )
    policy = load_policy(SOURCES["base"])
    Grpo(prompts_per_step=4, micro_batch_size=32, trl=trl).train(policy, context)
    steps = context.tracker.steps
    return [steps[step] for step in range(1, NUM_STEPS + 1)]


def test_the_learning_curve_is_that_of_transformers(engine, make_context, trl_arguments):
    """The mean reward of the second half lies within three standard deviations of three seeds of transformers'."""
    ours = curve(make_context, trl_arguments, engine, seed=0)
    for step in ours:
        assert step["parity/logp_difference/max"] < 1e-4  # new weights at every step
        assert step["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-3)
    theirs = [curve(make_context, trl_arguments, TransformersEngine(batch_size=64), seed) for seed in (0, 1, 2)]
    half = NUM_STEPS // 2
    late = [fmean(step["reward"] for step in steps[half:]) for steps in theirs]
    reached = fmean(step["reward"] for step in ours[half:])
    print(f"reward after step {half}: vLLM {reached:.3f}, transformers {late}")
    assert abs(reached - fmean(late)) < 3 * max(stdev(late), 0.03)
    assert reached > ours[0]["reward"]


def test_two_processes_have_an_engine_each(tmp_path):
    overrides = [
        *("rollout=vllm_colocate", "distributed=ddp", "distributed.num_processes=2", "tracker=none"),
        *(f"runs_dir={tmp_path}", "scale.max_steps=2", "scale.prompts_per_step=4", "scale.num_generations=4"),
        *("scale.micro_batch_size=8", "scale.max_completion_length=32", "scale.rollout_batch_size=16"),
        *("scale.probe_size=8", "scale.benchmark_size=4", "scale.num_threads=1", "name=two"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "run.py", *overrides], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "two" / "seed0" / "metrics.jsonl").read_text().splitlines()]
    parity = [row["parity/logp_difference/max"] for row in rows if "parity/logp_difference/max" in row]
    assert len(parity) == 2 and max(parity) < 1e-4
