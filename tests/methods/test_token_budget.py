"""A token budget changes nothing but memory: loss, gradients and curves are those of one pass over the micro-batch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visual_r1.methods.grpo import Grpo, RolloutGrpoTrainer
from visual_r1.methods.resampling import Batch, Resampling
from visual_r1.methods.resampling_trainer import ResamplingTrainer
from visual_r1.methods.token_budget import Rows

GROUP = 3
SHORTCUTS = ("shared_prefix", "encode_once", "keep_groups")


@st.composite
def micro_batches(draw):
    """Groups in any order, their completions together or not."""
    prompt_tokens = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    prompt_of = draw(st.lists(st.integers(0, len(prompt_tokens) - 1), min_size=1, max_size=16))
    return Rows(
        prompt_of=prompt_of,
        prompt_tokens=[prompt_tokens[prompt] for prompt in prompt_of],
        completion_tokens=[draw(st.integers(0, 60)) for _ in prompt_of],
        is_shared=draw(st.booleans()),
    )


@given(rows=micro_batches(), budget=st.integers(1, 400))
def test_each_row_is_in_one_pass_and_no_pass_is_over_the_budget(rows, budget):
    chosen = list(range(len(rows.prompt_of)))[::2]
    passes = rows.passes(chosen, budget=budget)
    assert sorted(row for one in passes for row in one) == chosen
    for one in passes:
        assert rows.num_tokens(one) <= budget or len(one) == 1
    for one, following in zip(passes, passes[1:], strict=False):
        assert rows.num_tokens(one + following) > budget


@given(rows=micro_batches(), budget=st.integers(1, 400))
def test_rows_keep_their_order_and_groups_stay_together(rows, budget):
    rows = replace(rows, prompt_of=sorted(rows.prompt_of))
    every = list(range(len(rows.prompt_of)))
    passes = rows.passes(every, budget=budget)
    assert [row for one in passes for row in one] == every
    for prompt in set(rows.prompt_of):
        group = [row for row in every if rows.prompt_of[row] == prompt]
        if rows.num_tokens(group) <= budget:
            assert any(set(group) <= set(one) for one in passes)


def test_tokens_are_counted_as_they_go_through_the_model():
    rows = Rows(prompt_of=[0, 0, 1], prompt_tokens=[10, 10, 7], completion_tokens=[3, 5, 0], is_shared=True)
    assert rows.num_tokens([0, 1, 2]) == (9 + 1 + 3 + 1 + 5) + (6 + 1)
    assert replace(rows, is_shared=False).num_tokens([0, 1, 2]) == 3 * (10 + 5)
    assert replace(rows, is_shared=False).num_tokens([2]) == 7 + 1  # a completion without tokens is one of padding


@dataclass
class Update:
    """What a micro-batch leaves behind."""

    loss: float
    gradients: dict[str, torch.Tensor]
    curves: dict[str, list[float]]
    passes: list[int]
    """Tokens of each forward pass with a gradient."""
    others: list[int]
    """Tokens of each without."""


@dataclass
class Bench:
    """A trainer with one micro-batch of two groups, whose numbers are such that every branch of a loss is taken."""

    trainer: Any
    inputs: dict[str, Any]
    forwards: list[tuple[int, bool]]

    @property
    def groups(self) -> list[int]:
        """Tokens of each of the two groups, if it goes through the model whole."""
        masks = self.inputs["prompt_mask"], self.inputs["completion_mask"]
        rows = self.trainer._lengths(self.inputs["prompt_ids"], *masks, self.inputs["prompt_of"])
        return [rows.num_tokens(range(first, first + GROUP)) for first in (0, GROUP)]

    @property
    def tight(self) -> int:
        """A budget for some completions of the larger group, but not for all of them."""
        return max(self.groups) - 1

    def update(self, *, budget: int | None, **changed: Any) -> Update:
        """The update of the micro-batch with some inputs changed, the trainer as it is."""
        trainer, model = self.trainer, self.trainer.model
        trainer.tokens_per_micro_batch = budget
        trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        model.zero_grad(set_to_none=True)
        self.forwards.clear()
        loss = trainer.compute_loss(model, {**self.inputs, **changed})
        trainer.accelerator.backward(loss)
        return Update(
            loss=loss.item(),
            gradients={name: one.grad for name, one in model.named_parameters() if one.grad is not None},
            curves=dict(trainer._metrics["train"]),
            passes=[num_tokens for num_tokens, has_gradient in self.forwards if has_gradient],
            others=[num_tokens for num_tokens, has_gradient in self.forwards if not has_gradient],
        )


@pytest.fixture(scope="module")
def build(load, make_context, trl_arguments):
    def bench(*, shortcuts=SHORTCUTS, resampling=None, **trl: Any) -> Bench:
        method = Grpo(
            prompts_per_step=4,
            micro_batch_size=2 * GROUP,
            trl=trl_arguments(num_generations=GROUP, max_completion_length=24, **{"beta": 0.04, **trl}),
            resampling=resampling,
            tokens_per_micro_batch=1,
            **dict.fromkeys(shortcuts, True),
        )
        method.check()
        trainer_class = RolloutGrpoTrainer if resampling is None else ResamplingTrainer
        trainer = trainer_class(policy=load(), context=make_context(), method=method)
        trainer.tokens_per_micro_batch = None
        trainer.current_gradient_accumulation_steps = 2  # what transformers says before each step
        trainer.model.train()
        forwards: list[tuple[int, bool]] = []

        def listen(_model: Any, _arguments: Any, given: dict[str, Any]) -> None:
            if "fused_lm_head" in given:  # not when it samples
                forwards.append((given["input_ids"].numel(), torch.is_grad_enabled()))

        trainer.model.register_forward_pre_hook(listen, with_kwargs=True)
        rows = [trainer.train_dataset[index] for index in (0, 1) for _ in range(GROUP)]
        inputs = trainer._generate_and_score_completions(rows)
        assert len(set(inputs["completion_mask"].sum(dim=1).tolist())) > 2
        draw = torch.Generator().manual_seed(0)
        sampled = inputs["sampling_per_token_logps"]
        for name in ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
            inputs[name] = sampled + 0.5 * torch.randn(sampled.shape, generator=draw)
        inputs["advantages"] = torch.tensor([0.7, -1.1, 0.4, -0.8, 1.2, -0.4])
        return Bench(trainer, inputs, forwards)

    return bench


@pytest.fixture(scope="module")
def bench(build):
    return build()


def assert_same(found, expected):
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.curves.keys() == expected.curves.keys()
    for name, values in expected.curves.items():
        assert found.curves[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name
    assert found.gradients.keys() == expected.gradients.keys()
    whole = torch.cat([one.flatten() for one in expected.gradients.values()]).norm()
    assert whole > 1e-3
    for name, gradient in expected.gradients.items():
        # Of parameters whose gradient is rounding itself, as a bias of the keys, relative to the others.
        assert (found.gradients[name] - gradient).norm() <= 3e-5 * max(gradient.norm(), 1e-2 * whole), name


LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "vespo", "luspo", "sapo")


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_gradients_and_curves_are_those_of_one_pass(bench, monkeypatch, loss_type):
    monkeypatch.setattr(bench.trainer, "loss_type", loss_type)
    monkeypatch.setattr(bench.trainer, "importance_sampling_level", "sequence" if loss_type == "luspo" else "token")
    expected = bench.update(budget=None)
    assert expected.passes == [sum(bench.groups)]
    assert {"kl", "entropy", "parity/logp_difference/mean", "parity/logp_difference/max"} <= expected.curves.keys()
    if loss_type == "grpo":
        assert 0 < expected.curves["clip_ratio/region_mean"][0] < 1
    found = bench.update(budget=bench.tight)
    assert len(found.passes) > 2 and max(found.passes) <= bench.tight
    assert_same(found, expected)


def test_whatever_the_budget(bench):
    expected = bench.update(budget=None)
    for budget, num_passes in ((1, 2 * GROUP), (max(bench.groups), 2), (10_000, 1)):
        found = bench.update(budget=budget)
        assert len(found.passes) == num_passes
        assert_same(found, expected)


@pytest.mark.parametrize("shortcuts", [(), ("encode_once",)])
def test_rows_that_are_padded_count_their_padding(build, shortcuts):
    bench = build(shortcuts=shortcuts)
    expected, found = (bench.update(budget=budget) for budget in (None, bench.tight))
    assert len(expected.passes) == 1 and 1 < len(found.passes)
    assert max(found.passes) <= bench.tight
    assert sum(found.passes) < expected.passes[0]  # each as wide as its own longest
    assert_same(found, expected)


def test_an_architecture_that_shares_nothing_has_a_budget_for_its_padding_too(build):
    bench = build(shortcuts=())
    bench.trainer.__dict__["_unknown"] = "not known"
    width = bench.inputs["prompt_ids"].shape[1] + bench.inputs["completion_ids"].shape[1]
    expected = bench.update(budget=None)
    for budget, rows in ((2 * width, 2), (2 * width - 1, 1)):
        found = bench.update(budget=budget)
        assert found.passes == [rows * width] * (2 * GROUP // rows)
        assert_same(found, expected)


def test_an_entropy_bonus_is_a_mean_over_the_micro_batch(bench, monkeypatch):
    monkeypatch.setattr(bench.trainer, "entropy_coef", 0.3)
    monkeypatch.setattr(bench.trainer, "_entropy_bonus_enabled", True)
    assert_same(bench.update(budget=bench.tight), bench.update(budget=None))


def test_the_weights_of_another_engines_tokens_are_those_of_one_pass(bench, monkeypatch):
    monkeypatch.setattr(bench.trainer, "use_vllm", True)
    monkeypatch.setattr(bench.trainer, "_is_reusing", True)
    monkeypatch.setattr(bench.trainer, "vllm_importance_sampling_mode", "token_truncate")
    updates, curves = [], []
    for budget in (None, bench.tight):
        updates.append(bench.update(budget=budget, old_per_token_logps=None))
        curves.append(bench.trainer._compared.curves(lambda value: value))
    assert_same(updates[1], updates[0])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_log_probs_without_a_gradient_obey_it(bench):
    bench.trainer.tokens_per_micro_batch = None
    inputs = bench.inputs
    bench.trainer._prompt_of = inputs["prompt_of"]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    scores = []
    for budget in (None, bench.tight):
        bench.trainer.tokens_per_micro_batch = budget
        bench.forwards.clear()
        with torch.no_grad():
            scores.append(
                bench.trainer._get_per_token_logps_and_entropies(
                    bench.trainer.model, ids, mask, inputs["completion_ids"].shape[1], batch_size=2 * GROUP
                )
            )
    assert len(bench.forwards) > 2 and max(num_tokens for num_tokens, _ in bench.forwards) <= bench.tight
    torch.testing.assert_close(scores[1][0], scores[0][0], rtol=1e-5, atol=1e-5)
    assert scores[1][1:] == (None, None)


@pytest.mark.parametrize(
    "advantages", [[0.0, 0.0, 0.0, -0.8, 1.2, -0.4], [0.7, 0.0, -0.7, 0.0, 0.0, 0.0], [0.0] * 6], ids=str
)
def test_what_has_no_advantage_gets_no_backward_pass(skipping, advantages):
    advantages = torch.tensor(advantages)
    expected, found = (skipping.update(budget=budget, advantages=advantages) for budget in (None, skipping.tight))
    # Of a group with some advantage its prompt goes through the model anyway, and all its completions with it.
    num_idle = sum(GROUP for group in advantages.split(GROUP) if not group.any())
    assert found.curves["groups/skipped"] == [pytest.approx(num_idle / 6)] == expected.curves["groups/skipped"]
    assert max(found.passes + found.others) <= skipping.tight and bool(found.others) == bool(num_idle)
    assert len(found.passes) <= max(1, 6 - num_idle)
    if num_idle < 6:
        assert_same(found, expected)
    else:
        assert len(found.passes) == 1 and not any(one.any() for one in found.gradients.values())


@pytest.fixture(scope="module")
def skipping(build):
    return build(shortcuts=(*SHORTCUTS, "skip_zero_advantage"), beta=0.0)


def test_what_a_subclass_makes_of_the_loss_holds_for_every_pass(build, monkeypatch):
    """Resampling divides it by the share of the groups that have a gradient."""
    bench = build(resampling=Resampling(by="reward", min_informative=0.5, max_attempts=1), beta=0.0)
    monkeypatch.setattr(Batch, "gradient_share", 0.25)
    assert_same(bench.update(budget=bench.tight), bench.update(budget=None))


def test_a_completion_beyond_the_budget_is_said_once(bench, caplog, monkeypatch):
    monkeypatch.setattr(bench.trainer, "_has_warned_of_length", False)
    for _ in range(2):
        bench.update(budget=1)
    [said] = [record.getMessage() for record in caplog.records if "tokens_per_micro_batch" in record.getMessage()]
    assert said.startswith("method.tokens_per_micro_batch=1: a prompt with one completion has ")


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_of_nothing_is_refused(trl_arguments, budget):
    with pytest.raises(ValueError, match=f"method.tokens_per_micro_batch={budget}: expected at least 1"):
        Grpo(prompts_per_step=4, micro_batch_size=4, trl=trl_arguments(), tokens_per_micro_batch=budget)


@pytest.mark.parametrize(("name", "value"), [("top_entropy_quantile", 0.8), ("use_adaptive_entropy", True)])
def test_what_compares_all_tokens_of_a_micro_batch_is_refused(trl_arguments, name, value):
    trl = trl_arguments(**{name: value})
    Grpo(prompts_per_step=4, micro_batch_size=4, trl=trl).check()
    method = Grpo(prompts_per_step=4, micro_batch_size=4, trl=trl, tokens_per_micro_batch=1000)
    with pytest.raises(ValueError, match=f"method.trl.{name}={value}: it looks at all tokens of a micro-batch at once"):
        method.check()
