"""The benchmarks' own logic: who is asked when, what is a row, what is counted, that both sides do the same work."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floor, recording, step, updates
from benchmarks.recording import Rows, compared, in_turns
from benchmarks.updates import Bench, Case, Questions, counting, grid, lengths
from visual_r1.files import read_json
from visual_r1.update_timing import make_batch, update

CASE = Case(
    model="nano",
    image_tokens=(16, 9),
    text_tokens=94,
    lengths=(5, 8, 6, 8, 3, 7),
    longest=8,
    group=3,
    micro_batch=6,
)


def test_sides_take_turns_and_their_medians_are_compared():
    asked = []
    values = {"stock": iter([8.0, 6.0, 7.0]), "ours": iter([2.0, 4.0, 1.0])}

    def ask(side):
        asked.append(side)
        return next(values[side])

    given = in_turns({side: lambda side=side: ask(side) for side in values}, turns=3)
    assert asked == ["stock", "ours"] * 3
    assert given == {"stock": [8.0, 6.0, 7.0], "ours": [2.0, 4.0, 1.0]}
    row = compared("case", "update", given, unit="seconds", note="n")
    assert row == {
        **{"case": "case", "metric": "update", "stock": 7.0, "ours": 2.0, "ratio": 3.5, "unit": "seconds", "runs": 3},
        **{"spread": {"stock": [6.0, 8.0], "ours": [1.0, 4.0]}, "note": "n"},
    }
    assert compared("case", "memory", given, unit="bytes", is_share=True)["ratio"] == pytest.approx(2 / 7, abs=5e-3)


def test_an_interrupted_part_goes_on_where_it_was(tmp_path):
    path, key = tmp_path / "a" / "part.jsonl", {"commit": "one", "threads": 1}
    rows = Rows(path, key)
    rows.add("first", [{"case": "first", "ratio": 2.0}, {"case": "first", "ratio": 3.0}])
    rows.add("second", [{"case": "second", "ratio": 4.0}])
    path.write_text(path.read_text() + '{"case": "third", "rows": [{"ra')  # killed while it wrote
    again = Rows(path, key)
    assert "first" in again and "second" in again and "third" not in again
    again.add("third", [{"case": "third", "ratio": 5.0}])
    assert [row["ratio"] for row in Rows(path, key).rows] == [2.0, 3.0, 4.0, 5.0]
    assert Rows(path, {**key, "commit": "two"}).rows == []  # other code, other numbers
    again.finish()
    assert not path.exists()


def test_lengths_are_spread_from_half_of_the_longest_to_the_longest():
    assert sorted(lengths(200, 5)) == [100, 125, 150, 175, 200] != list(lengths(200, 5))
    assert lengths(200, 5) == lengths(200, 5) and lengths(200, 1) == (150,)


@pytest.mark.parametrize("tokens", sorted({*step.IMAGES, *step.GROWTH_IMAGES}))
def test_an_image_has_the_tokens_that_are_asked_for(policies, tokens):
    width, height = grid(tokens)
    assert width * height == tokens and height <= width <= 2 * height
    if tokens > 64:
        return  # beyond what nano's processor leaves as it is
    policy = policies["base"]
    question = Questions(policy, (tokens,), text_tokens=100)[0]
    assert policy.limits.num_tokens(*policy.fitted(question).images[0].size) == tokens
    assert policy.prompt_length(question) == tokens + 100


def test_the_grid_is_whole_and_every_case_has_a_name_of_its_own(monkeypatch):
    monkeypatch.setattr(step, "laptop_case", lambda: CASE)
    cases = step.update_cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    sizes = {(case.image_tokens[0], case.group, case.longest) for case in cases}
    assert sizes >= set(itertools.product(step.IMAGES, step.GROUPS, step.LENGTHS))
    assert all(case.longest == max(case.lengths) for case in cases if case.group > 1)
    equal = [case for case in cases if set(case.lengths) == {200}]
    assert [case.name for case in equal] == ["28M, 300 image + 100 text tokens, 8 x 200, all equally long"]
    assert {case.group for case in cases if case.image_tokens == (300,) and case.longest == 200} >= {1, 2, 4, 8, 16}


def test_operations_are_those_that_torch_counts(policies):
    model = policies["base"].model
    config = json.loads(model.config.to_json_string(use_diff=False))
    tokens, image = 40, 16
    ids = torch.full((1, tokens), 5)
    ids[0, 2 : 2 + image] = config["image_token_id"]
    # The kernel of one piece is not among what torch counts on a CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(
            input_ids=ids,
            pixel_values=torch.randn(image * 4, 1176),
            image_grid_thw=torch.tensor([[1, 8, 8]]),
            mm_token_type_ids=(ids == config["image_token_id"]).int(),
        )
    # Attention is done as if every token saw every other, and this call has logits everywhere.
    work = floor._work(config, images=[image], tokens=tokens, seen=tokens**2, scored=tokens)
    rotary = 2 * tokens * 16  # positions times frequencies, as a product of matrices
    assert work.total == pytest.approx(counter.get_total_flops(), abs=4 * rotary)


def test_what_is_done_once_is_counted_once():
    config = read_json(step.NANO / "config.json")
    shape = {"image_tokens": [16, 36], "text_tokens": 10}
    one = floor.once(config, lengths=[4, 4], **shape)
    three = floor.once(config, lengths=[4] * 6, **shape)
    assert three.vision == one.vision and three.head == 3 * one.head
    per_token = one.text / (16 + 36 + 2 * 10 + 2 * 4)
    assert three.text == pytest.approx(per_token * (16 + 36 + 2 * 10 + 6 * 4))
    # A completion of 4 tokens sees its prompt 4 times, and 1 + 2 + 3 + 4 of its own.
    extra = three.attention - one.attention
    assert extra == pytest.approx(4 * 4 * 128 * 2 * ((26 + 46) * 4 + 2 * 10))
    stock = floor.padded(config, lengths=[4, 2] * 3, **shape)
    assert stock.vision == pytest.approx(3 * one.vision) and stock.text == pytest.approx(per_token * 6 * (36 + 10 + 4))


def test_the_rate_is_that_of_products_of_matrices(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(floor.time, "perf_counter", lambda: float(next(clock)))
    config = read_json(step.NANO / "config.json")
    rate = floor.matmul_rate(config, tokens=20, patches=30)
    # Each product took a second: four in four layers of the language model, with 2 + 2 + 2 + 1 of them, ...
    seconds = 4 * (2 + 2 + 2 + 1) + 2 * 4
    text = 2 * 20 * 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384)
    vision = 2 * 30 * 2 * 96 * 96 * (4 + 8)
    assert rate == pytest.approx((text + vision) / seconds)


def test_growth_is_the_slope_of_the_rows():
    assert step.slope([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx(2)

    def row(image, group, stock, ours, longest=200):
        shape = {"model": "28M", "image_tokens": image, "group": group, "longest": longest}
        return {"case": "c", "metric": "update", "stock": stock, "ours": ours, "shape": shape}

    rows = [row(300, group, 1 + 4.0 * group, 5 + 1.0 * group) for group in (1, 2, 8)]
    rows += [row(image, 4, 17 + 0.03 * (image - 300), 9 + 0.01 * (image - 300)) for image in (64, 300, 500)]
    rows += [row(300, 16, 1000, 1000, longest=700), {**row(300, 8, 99, 99), "case": "all equally long"}]
    completion, image = step.growth(rows)
    assert (completion["stock"], completion["ours"], completion["ratio"]) == (4.0, 1.0, 4.0)
    assert (image["stock"], image["ours"]) == (pytest.approx(0.03), pytest.approx(0.01))
    assert step.growth(rows[:1]) == []


@pytest.fixture(scope="module")
def trainers(checkpoint):
    with Bench({"nano": checkpoint("base")}) as bench:
        yield {side: bench.trainer(CASE, side) for side in ("stock", "ours")}


def test_both_sides_learn_the_same_from_the_same_rollouts(trainers):
    assert type(trainers["stock"]) is updates.GRPOTrainer  # and nothing of ours in between
    gradients, computed = {}, {}
    for side, trainer in trainers.items():
        made = make_batch(trainer)
        assert made.seconds > 0 == made.pass_seconds  # without a beta there is no pass of a reference policy
        with counting(trainer.model) as passed:
            assert update(trainer) > 0
        computed[side] = passed
        gradients[side] = {name: one.grad.clone() for name, one in trainer.model.named_parameters()}
    norm = sum(float(one.norm() ** 2) for one in gradients["stock"].values()) ** 0.5
    assert norm > 1e-3
    for name, gradient in gradients["stock"].items():
        torch.testing.assert_close(gradients["ours"][name], gradient, rtol=0, atol=1e-5 * norm, msg=name)
    # Stock: six rows as wide as the longest prompt and the longest completion, each with its image.
    assert (computed["stock"].tokens, computed["stock"].patches) == (6 * (110 + 8), 3 * 4 * (16 + 9))
    assert computed["ours"].patches == 4 * (16 + 9)
    assert computed["ours"].tokens == 110 + 103 - 2 + sum(CASE.lengths) + 6


@pytest.mark.parametrize(
    ("side", "overrides", "has_engine"),
    [
        ("stock", [], False),
        ("ours", [], True),  # without old log-probs
        ("ours", ["method.skip_old_logps=false", "method.trl.num_iterations=2"], True),
    ],
)
def test_what_is_timed_is_what_a_real_step_does(checkpoint, monkeypatch, side, overrides, has_engine):
    """The same passes over the same number of tokens, with the same curves."""
    case = replace(CASE, micro_batch=3, beta=0.04)
    passes: dict[str, list[tuple[bool, int]]] = {"real": [], "timed": []}
    curves: dict[str, set[str]] = {}
    with Bench({"nano": checkpoint("base")}) as bench:
        for kind, kept in passes.items():
            trainer = bench.trainer(
                case, side, overrides=["scale.max_steps=1", *overrides], needs_correction=has_engine
            )

            def keep(_module, _args, kwargs, kept=kept):
                kept.append((torch.is_grad_enabled(), kwargs["inputs_embeds"].shape[:2].numel()))

            for model in (trainer.model, trainer.ref_model):
                model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
            if kind == "real":
                monkeypatch.setattr(
                    type(trainer), "log", lambda self, *_logs: curves.setdefault("real", set(self._metrics["train"]))
                )
                trainer.train()
                monkeypatch.undo()
            else:
                make_batch(trainer)
                update(trainer)
                curves[kind] = set(trainer._metrics["train"])
    assert passes["timed"] == passes["real"]
    assert [one for one, _ in passes["timed"]].count(True) == 2  # micro-batches
    assert curves["timed"] == curves["real"]
    assert ("parity/logp_difference/mean" in curves["timed"]) == (side == "ours")


def test_an_update_can_be_repeated_and_cut_short(trainers):
    trainer = trainers["stock"]
    make_batch(trainer)
    batch = trainer._buffered_inputs
    update(trainer)
    first = trainer.model.lm_head.weight.grad.clone()
    update(trainer)
    torch.testing.assert_close(trainer.model.lm_head.weight.grad, first)
    assert trainer._buffered_inputs is batch  # no new rollouts in between
    update(trainer, micro_batches=0)
    assert trainer.model.lm_head.weight.grad is None


def test_what_benchmarks_have_written_does_not_make_the_code_another(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        subprocess.run(command, check=True, capture_output=True)

    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(recording, "RESULTS", tmp_path / "benchmarks" / "results")
    assert recording.facts({})["is_dirty"] is None
    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    recording.RESULTS.mkdir(parents=True)
    (recording.RESULTS / "step.json").write_text("{}")
    assert recording.facts({})["is_dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert recording.facts({})["is_dirty"] is True
