"""Another engine's tokens weigh by the trainer's probability over the engine's, by trl's own rule."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import log, sin
from typing import Any

import pytest
import torch

from visual_r1.methods.grpo import Grpo
from visual_r1.models import Adapter
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.transformers import TransformersEngine, TransformersSampler

REWARDS = (WeightedReward(name="length", weight=1.0, function=LengthBonus(per_token=0.1)),)


@dataclass
class DistortedEngine:
    """The trainer's own tokens, under log-probabilities that are off by `offset`."""

    offset: float
    spread: float = 0.0
    """By how much more or less they are off, from token to token."""
    needs_correction: bool = True
    warn_logp_difference: float | None = None
    engine: TransformersEngine = field(default_factory=lambda: TransformersEngine(batch_size=64))
    batch_size: int = 64

    def check(self, source: Any) -> None:
        self.engine.check(source)

    @contextmanager
    def serving(self, policy: Any) -> Generator[DistortedSampler]:
        with self.engine.serving(policy) as sampler:
            yield DistortedSampler(sampler, self.offset, self.spread)


@dataclass(frozen=True)
class DistortedSampler:
    sampler: TransformersSampler
    offset: float
    spread: float

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return [
            [replace(one, logps=tuple(map(self._distorted, one.logps, one.token_ids))) for one in group]
            for group in self.sampler.generate(*args, **kwargs)
        ]

    def _distorted(self, logp: float, token: int) -> float:
        return logp + self.offset + self.spread * sin(token)


@pytest.fixture(scope="module")
def moved(load, make_context, trl_arguments) -> Callable[..., tuple[dict[str, torch.Tensor], dict[str, float]]]:
    """How far one step of plain gradient descent moves each weight, and the step's curves."""

    def run(engine: Any, **arguments: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        policy = load()
        before = {name: weight.detach().cpu().clone() for name, weight in policy.model.named_parameters()}
        context = make_context(engine=engine, rewards=REWARDS)
        # Without clipping, which would give every gradient the same length.
        trl = trl_arguments(max_grad_norm=0.0, learning_rate=1.0, **arguments)
        method = Grpo(prompts_per_step=2, micro_batch_size=8, trl=trl)
        method.check()
        trained, _ = method.train(policy, context)
        after = {name: weight.detach().cpu() for name, weight in trained.model.named_parameters()}
        return {name: after[name] - weight for name, weight in before.items()}, context.tracker.steps[1]

    return run


@pytest.fixture(scope="module")
def plain(moved):
    return moved(TransformersEngine(batch_size=64))


TOKEN = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 3.0}


@pytest.mark.parametrize(
    ("offset", "factor"),
    [
        pytest.param(0.0, 1.0, id="exact"),
        pytest.param(log(2), 0.5, id="engine-twice-as-sure"),
        pytest.param(-log(5), 3.0, id="truncated"),
    ],
)
def test_the_step_is_as_long_as_the_ratio(moved, plain, offset, factor):
    steps, curves = moved(DistortedEngine(offset), **TOKEN)
    assert curves["sampling/importance_sampling_ratio/mean"] == pytest.approx(factor, rel=1e-5)
    assert curves["parity/logp_difference/mean"] == pytest.approx(abs(offset), abs=1e-5)
    largest = max(step.abs().max().item() for step in plain[0].values())
    for name, step in plain[0].items():
        torch.testing.assert_close(steps[name], factor * step, rtol=0, atol=1e-3 * largest, msg=name)
    assert largest > 1e-3


@dataclass(frozen=True)
class Training:
    weights: dict[str, torch.Tensor]
    curves: list[dict[str, float]]
    num_passes: int
    """Of the model, those of sampling included."""


@pytest.fixture(scope="module")
def train(load, make_context, trl_arguments) -> Callable[..., Training]:
    """Steps of two micro-batches on log-probs that are off by something else for each token."""

    def run(*, adapter: Adapter | None = None, flags: dict[str, Any], **arguments: Any) -> Training:
        torch.manual_seed(0)  # an adapter's first weights are drawn
        policy, passes = load(adapter=adapter), []
        norm = next(layer for name, layer in policy.model.named_modules() if name.endswith("language_model.norm"))
        norm.register_forward_pre_hook(lambda *_arguments: passes.append(1))
        context = make_context(engine=DistortedEngine(0.1, spread=0.3), rewards=REWARDS)
        trl = trl_arguments(**{"vllm_importance_sampling_clip_max": 1.4, **arguments})
        Grpo(prompts_per_step=2, micro_batch_size=4, trl=trl, **flags).train(policy, context)
        weights = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
        return Training(weights, [context.tracker.steps[step + 1] for step in range(trl["max_steps"])], len(passes))

    return run


def is_same(ours: Training, trls: Training) -> None:
    """In what is learned and in every curve."""
    for mine, theirs in zip(ours.curves, trls.curves, strict=True):
        timeless = {name for name in theirs if "time" not in name}
        assert timeless == {name for name in mine if "time" not in name}
        assert {name: mine[name] for name in timeless} == pytest.approx(
            {name: theirs[name] for name in timeless}, rel=1e-5, abs=1e-6
        )
    for name, weight in trls.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)


MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
CLIPPED = {"vllm_importance_sampling_clip_min": 0.8}
LOSSES = {
    **{mode: {"vllm_importance_sampling_mode": mode, **CLIPPED} for mode in MODES},
    "two-steps": {"vllm_importance_sampling_mode": "token_mask", "max_steps": 2},
    "vespo": {"loss_type": "vespo", "vllm_importance_sampling_mode": "token_truncate"},
    "off-policy-mask": {"off_policy_mask_threshold": 0.05, "vllm_importance_sampling_mode": "token_mask"},
}


@pytest.mark.parametrize("arguments", LOSSES.values(), ids=LOSSES)
def test_without_a_pass_of_its_own_the_correction_is_trls(train, arguments):
    trls = train(flags={}, **arguments)
    ours = train(flags={"skip_old_logps": True}, **arguments)
    is_same(ours, trls)
    assert trls.num_passes - ours.num_passes == 2 * len(ours.curves)  # one for each micro-batch
    ratios = [curves[f"sampling/importance_sampling_ratio/{name}"] for curves in ours.curves for name in ("min", "max")]
    assert len(set(ratios)) > 1 and trls.curves[0]["grad_norm"] > 0


DROPOUT = Adapter(rank=2, alpha=4, dropout=0.5, target_modules=r".*language_model.*\.q_proj")


@pytest.mark.parametrize(
    ("adapter", "arguments"),
    [
        pytest.param(None, {"num_iterations": 2, "max_steps": 2}, id="two-updates"),
        pytest.param(DROPOUT, {}, id="dropout"),
    ],
)
def test_where_the_updates_log_probs_are_others_trl_computes_them(train, adapter, arguments):
    trls = train(adapter=adapter, flags={}, **arguments)
    ours = train(adapter=adapter, flags={"skip_old_logps": True}, **arguments)
    is_same(ours, trls)
    assert ours.num_passes == trls.num_passes


def test_with_every_other_shortcut_it_is_the_same(train):
    others = dict.fromkeys(("shared_prefix", "encode_once", "keep_groups", "trim_padding", "skip_zero_advantage"), True)
    with_a_pass = train(flags=others, **CLIPPED)
    without = train(flags={**others, "skip_old_logps": True}, **CLIPPED)
    is_same(without, with_a_pass)
    assert with_a_pass.num_passes - without.num_passes == 2


def test_an_engine_that_is_the_trainer_is_not_corrected(plain):
    assert not any(name.startswith("sampling/importance") for name in plain[1])


def test_a_completion_that_the_engine_would_hardly_have_drawn_does_not_count(moved):
    # Each token is 2.7 times likelier under the trainer: two of them exceed a ratio of 3.
    sequence = {"vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 3.0}
    steps, curves = moved(DistortedEngine(-1.0), **sequence)
    assert curves["completions/min_length"] >= 2
    assert curves["sampling/importance_sampling_ratio/max"] == 0.0
    assert all(not step.any() for step in steps.values())


def test_it_can_be_turned_off(moved, plain):
    steps, curves = moved(DistortedEngine(log(2)), vllm_importance_sampling_correction=False)
    assert "sampling/importance_sampling_ratio/mean" not in curves
    assert all(torch.equal(steps[name], step) for name, step in plain[0].items())


def test_what_would_be_said_to_trls_own_vllm_is_refused(trl_arguments):
    method = Grpo(prompts_per_step=2, micro_batch_size=8, trl=trl_arguments(vllm_mode="server"))
    with pytest.raises(ValueError, match=r"method\.trl\.vllm_mode: .* the group rollout decides this"):
        method.check()


def test_an_unknown_rule_is_refused(trl_arguments):
    method = Grpo(
        prompts_per_step=2, micro_batch_size=8, trl=trl_arguments(vllm_importance_sampling_mode="sequence_msak")
    )
    with pytest.raises(ValueError, match=r"vllm_importance_sampling_mode=sequence_msak: unknown, expected one of"):
        method.check()


def test_a_loss_with_its_own_weights_of_sequences_takes_those_of_tokens(trl_arguments):
    trl = trl_arguments(loss_type="vespo", vllm_importance_sampling_mode="sequence_mask")
    with pytest.raises(ValueError, match="sequence_mask: loss_type=vespo needs token_truncate or token_mask"):
        Grpo(prompts_per_step=2, micro_batch_size=8, trl=trl).check()
    Grpo(prompts_per_step=2, micro_batch_size=8, trl={**trl, "vllm_importance_sampling_mode": "token_mask"}).check()


def test_a_large_difference_is_said_once(moved, capsys):
    engine = DistortedEngine(0.1, warn_logp_difference=0.05)
    moved(engine, max_steps=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: step" in line]
    assert len(lines) == 1 and "step 1" in lines[0] and "0.1 a token" in lines[0]
    moved(replace(engine, warn_logp_difference=0.2))
    assert "warning: step" not in capsys.readouterr().err
