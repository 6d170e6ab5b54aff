"""Each shortcut alone, and all together: the step is trl's, and what it saves is counted."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from PIL import Image

from visual_r1.examples import Example
from visual_r1.methods import shared_prefix, shared_prefix_trainer
from visual_r1.methods.grpo import Grpo, RolloutGrpoTrainer
from visual_r1.methods.shared_prefix_trainer import encode_images
from visual_r1.models import Adapter
from visual_r1.rewards.length_bonus import LengthBonus
from visual_r1.rewards.trl_function import TrlFunction
from visual_r1.rewards.weighted import WeightedReward

SHORTCUTS = ("shared_prefix", "encode_once", "keep_groups", "trim_padding", "skip_zero_advantage")
PROMPTS, GROUP = 4, 4
LENGTH = WeightedReward(name="length", weight=1.0, function=LengthBonus(per_token=0.1))


def picture(width: int, height: int, color: str) -> Image.Image:
    image = Image.new("RGB", (width, height), color)
    image.paste((250, 250, 250), (3, 5, width // 2, height // 3))
    return image


def example(number: int, *images: Image.Image, question: str) -> Example:
    return Example(
        id=f"example {number}",
        images=images,
        question=question,
        choices=("left", "right"),
        solution="AB"[number % 2],
        category="Relation",
    )


EXAMPLES = [
    example(0, picture(56, 56, "red"), question="Where is the cup?"),
    example(
        1, picture(84, 56, "blue"), picture(56, 112, "green"), question="Is the red cup left of the plate, or right?"
    ),
    example(2, question="Which side is nearer?"),
    example(3, picture(112, 84, "gray"), question="How many cups are there, " + "or plates, " * 9 + "left of the box?"),
]
NUM_IMAGES = 4


@dataclass
class Trained:
    """A step of plain gradient descent, so that the weights show the gradient."""

    steps: dict[str, torch.Tensor]
    """How far each weight has moved."""
    curves: list[dict[str, float]]
    batch: dict[str, Any]
    """What the first generation batch holds."""
    num_preprocessed: int
    """Images that went through the processor for the updates."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Of the model, by the updates and by the passes before them."""


@pytest.fixture(scope="module")
def train(load, make_context, trl_arguments) -> Callable[..., Trained]:
    def run(*, shortcuts=(), rewards=(LENGTH,), adapter=None, micro_batch_size=8, **arguments) -> Trained:
        torch.manual_seed(0)  # of the adapters
        policy = load(adapter=adapter)
        before = {name: one.detach().clone() for name, one in policy.model.named_parameters()}
        given = {"learning_rate": 10.0, "max_grad_norm": 0.0, "num_generations": GROUP, **arguments}
        method = Grpo(
            prompts_per_step=PROMPTS,
            micro_batch_size=micro_batch_size,
            trl=trl_arguments(**given),
            **dict.fromkeys(shortcuts, True),
        )
        method.check()
        calls: list[dict[str, Any]] = []
        policy.model.register_forward_pre_hook(
            lambda _model, _args, kwargs: calls.append(kwargs) if "labels" in kwargs else None, with_kwargs=True
        )
        batches, images = [], []
        with pytest.MonkeyPatch.context() as patch:
            make, encode = RolloutGrpoTrainer._generate_and_score_completions, policy.processor.image_processor.__call__
            roll_out, inside = RolloutGrpoTrainer._roll_out, []

            def making(trainer, inputs):
                inside.append("making")
                batches.append(make(trainer, inputs))
                inside.pop()
                return batches[-1]

            def sampling(*args):
                inside.append("sampling")
                found = roll_out(*args)
                inside.pop()
                return found

            def encoding(_processor, *args, **kwargs):
                found = encode(*args, **kwargs)
                if inside[-1:] == ["making"]:
                    images.append(len(found["image_grid_thw"]))
                return found

            patch.setattr(RolloutGrpoTrainer, "_generate_and_score_completions", making)
            patch.setattr(RolloutGrpoTrainer, "_roll_out", sampling)
            patch.setattr(type(policy.processor.image_processor), "__call__", encoding)
            context = make_context(rewards=rewards, examples=EXAMPLES)
            trained, _ = method.train(policy, context)
        after = dict(trained.model.named_parameters())
        return Trained(
            steps={name: (after[name] - one).detach() for name, one in before.items()},
            curves=list(context.tracker.steps.values()),
            batch=batches[0],
            num_preprocessed=sum(images),
            calls=calls,
        )

    return run


@pytest.fixture(scope="module")
def stock(train):
    return {beta: train(beta=beta) for beta in (0.0, 0.04)}


def assert_same(found: Trained, expected: Trained, *, within: float = 1e-5) -> None:
    whole = length(expected.steps.values())
    assert whole > 1
    assert length(found.steps[name] - step for name, step in expected.steps.items()) < within * whole
    for name, step in expected.steps.items():
        assert length([found.steps[name] - step]) <= 10 * within * max(length([step]), 1e-2 * whole), name
    for one, other in zip(found.curves, expected.curves, strict=True):
        for key in ("loss", "grad_norm", "reward", "completions/mean_length", "frac_reward_zero_std"):
            if key in other:
                assert one[key] == pytest.approx(other[key], rel=10 * within, abs=1e-6), key


def length(tensors) -> float:
    return float(torch.stack([one.square().sum() for one in tensors]).sum().sqrt())


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("shortcuts", [*((one,) for one in SHORTCUTS), SHORTCUTS], ids="+".join)
def test_the_step_is_that_of_trl(train, stock, shortcuts, beta):
    assert_same(train(shortcuts=shortcuts, beta=beta), stock[beta])


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo", "cispo", "sapo"])
def test_the_step_is_that_of_trl_under_other_losses(train, loss_type):
    assert_same(train(shortcuts=SHORTCUTS, loss_type=loss_type), train(loss_type=loss_type))


@pytest.mark.parametrize("shortcuts", [("trim_padding",), SHORTCUTS], ids="+".join)
def test_the_step_is_that_of_trl_in_micro_batches_smaller_than_a_group(train, shortcuts):
    given = {"micro_batch_size": 2, "beta": 0.04}
    found = train(shortcuts=shortcuts, **given)
    assert len({call["labels"].shape[1] for call in found.calls}) > 1
    # Twice the tolerance: rounding in eight parts, of advantages that nearly cancel.
    assert_same(found, train(**given), within=2e-5)


def test_the_step_is_that_of_trl_with_adapters(train):
    adapter = Adapter(rank=2, alpha=4, dropout=0.0, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    given = {"adapter": adapter, "beta": 0.04, "learning_rate": 1e3}
    assert_same(train(shortcuts=SHORTCUTS, **given), train(**given))


def test_adapters_that_drop_draw_for_each_completion_and_say_so(train, caplog):
    adapter = Adapter(rank=2, alpha=4, dropout=0.5, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    with caplog.at_level(logging.WARNING):
        found = train(shortcuts=SHORTCUTS, adapter=adapter)
    assert [one.getMessage() for one in caplog.records if "shared_prefix" in one.getMessage()] == [
        "method.shared_prefix: what dropout leaves out must be drawn anew for each completion; prompts and images are "
        "computed for each completion, as trl does"
    ]
    assert found.calls and all("layout" not in call for call in found.calls)
    assert found.num_preprocessed == NUM_IMAGES  # the other shortcuts stay


def test_the_step_is_that_of_trl_with_several_updates_of_a_batch(train):
    """The second weighs each token by its probability over that of the old policy."""
    given = {"num_iterations": 2, "max_steps": 2, "epsilon": 10.0, "learning_rate": 0.1}
    assert_same(train(shortcuts=SHORTCUTS, **given), train(**given), within=1e-4)


def test_curves_of_tokens_are_those_of_trl_where_micro_batches_are(train, stock):
    """Together, because with other micro-batches the mean over them is another."""
    found = train(shortcuts=("shared_prefix", "encode_once", "trim_padding", "skip_zero_advantage"))
    for key in ("entropy", "clip_ratio/region_mean", "parity/logp_difference/mean"):
        assert found.curves[-1][key] == pytest.approx(stock[0.0].curves[-1][key], rel=1e-4, abs=1e-6), key


def test_a_group_goes_through_the_model_together_and_once(train):
    found = train(shortcuts=("shared_prefix", "keep_groups"))
    assert len(found.calls) == 2
    for call in found.calls:
        # Two prompts for eight completions: each prompt's tokens once, but its last one with each completion.
        assert call["layout"].prompt_of.tolist() == [0] * GROUP + [1] * GROUP
        assert call["input_ids"].shape == (
            1,
            int(call["layout"].prompt_lengths.sum() + call["layout"].own_lengths.sum()),
        )
    grids = torch.cat([call["image_grid_thw"] for call in found.calls if "image_grid_thw" in call])
    assert len(grids) == NUM_IMAGES


def test_images_are_preprocessed_and_held_once(train, stock):
    found = train(shortcuts=("encode_once",))
    assert found.num_preprocessed == NUM_IMAGES
    assert stock[0.0].num_preprocessed == NUM_IMAGES * GROUP
    assert "pixel_values" in stock[0.0].batch and "pixel_values" not in found.batch


def test_an_image_is_encoded_as_by_the_processor(policies):
    policy = policies["base"]
    fitted = [policy.fitted(one) for one in EXAMPLES]
    for one, found in zip(fitted, encode_images(policy, fitted, torch.device("cpu")), strict=True):
        if not one.images:
            assert not len(found.image_grid_thw)
            continue
        expected = policy.processor(
            images=[list(one.images)], text=["<|image_pad|>" * len(one.images)], return_tensors="pt"
        )
        assert torch.equal(found.pixel_values, expected["pixel_values"])
        assert torch.equal(found.image_grid_thw, expected["image_grid_thw"])


def test_padding_is_of_the_own_micro_batch(train):
    def is_padded_through(trained):
        return [bool((call["attention_mask"] == 0).all(dim=0).any()) for call in trained.calls]

    assert any(is_padded_through(train(shortcuts=("keep_groups",))))
    assert not any(is_padded_through(train(shortcuts=("keep_groups", "trim_padding"))))


@pytest.fixture(scope="module")
def uneven():
    """Some groups of equal rewards."""

    def score(rollout):
        return rollout.num_tokens / 8 if "cup" in rollout.example.question else 0.5

    return WeightedReward(name="uneven", weight=1.0, function=score)


def test_groups_without_advantage_get_no_backward_pass(train, uneven):
    expected = train(rewards=(uneven,))
    found = train(rewards=(uneven,), shortcuts=("skip_zero_advantage",))
    assert_same(found, expected)
    groups = found.batch["advantages"].view(PROMPTS, GROUP)
    share = (groups == 0).all(dim=1).float().mean().item()
    assert 0 < share < 1 and found.curves[-1]["groups/skipped"] == pytest.approx(share)
    assert found.curves[-1]["entropy"] == pytest.approx(expected.curves[-1]["entropy"], rel=1e-5)
    assert "groups/skipped" not in expected.curves[-1]
    assert len(found.calls) > len(expected.calls)  # those without a gradient are called apart


def test_a_group_with_some_advantage_is_computed_once_and_whole(train):
    scores = itertools.cycle([0.0, 1.0, 0.5, 0.5])
    mixed = WeightedReward(name="mixed", weight=1.0, function=lambda _rollout: next(scores))
    found = train(rewards=(mixed,), shortcuts=SHORTCUTS)
    assert (found.batch["advantages"].view(PROMPTS, GROUP) == 0).sum(dim=1).tolist() == [2] * PROMPTS
    assert len(found.calls) == 2 and found.curves[-1]["groups/skipped"] == 0


def test_nothing_is_skipped_where_the_reference_policy_pulls(train, uneven):
    assert "groups/skipped" not in train(rewards=(uneven,), shortcuts=SHORTCUTS, beta=0.04).curves[-1]


def test_a_step_of_equal_rewards_moves_nothing_and_fails_nowhere(train):
    equal = WeightedReward(name="equal", weight=1.0, function=lambda _rollout: 0.5)
    found = train(rewards=(equal,), shortcuts=SHORTCUTS)
    assert length(found.steps.values()) == 0 and found.curves[-1]["groups/skipped"] == 1


SEEN: list[dict[str, Any]] = []


def see(prompts, images, **_columns):
    """A user's reward function."""
    SEEN.append({"prompts": prompts, "images": images})
    return [0.0] * len(prompts)


def test_a_users_function_sees_the_images_all_the_same(train):
    rewards = (LENGTH, WeightedReward(name="see", weight=0.0, function=TrlFunction(path=f"{__name__}.see")))
    SEEN.clear()
    train(rewards=rewards)
    train(rewards=rewards, shortcuts=SHORTCUTS)
    stock_columns, own_columns = SEEN
    assert [len(one) for one in own_columns["images"]] == [len(one) for one in stock_columns["images"]]
    assert sum(map(len, own_columns["images"])) == GROUP * NUM_IMAGES

    def kinds(columns):
        return [[part["type"] for part in prompt[0]["content"]] for prompt in columns["prompts"]]

    assert kinds(own_columns) == kinds(stock_columns)


def test_an_unknown_model_is_trained_by_trl_and_says_so(train, stock, monkeypatch, caplog):
    for module in (shared_prefix, shared_prefix_trainer):
        monkeypatch.setattr(module, "unknown", lambda _model: "Other is not known to it")
    with caplog.at_level(logging.WARNING):
        found = train(shortcuts=SHORTCUTS)
    assert_same(found, stock[0.0])
    assert [one.getMessage() for one in caplog.records if "shared_prefix" in one.getMessage()] == [
        "method.shared_prefix: Other is not known to it; prompts and images are computed for each completion, as trl "
        "does"
    ]
    assert all("layout" not in call for call in found.calls)
