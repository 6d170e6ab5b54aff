"""What an engine is given again: what may have changed, whoever wrote to it and however, and nothing else."""

from __future__ import annotations

import numpy
import pytest
import torch

from visual_r1.models import Adapter
from visual_r1.rollout import pushes
from visual_r1.rollout.pushes import Pushes
from visual_r1.rollout.weights import policy_weights

LORA = Adapter(rank=2, alpha=4, dropout=0.5, target_modules=r".*language_model.*\.q_proj")


class Holder:
    """An engine that keeps the weights it is given."""

    def __init__(self, changed_only=True):
        self.pushes = Pushes(changed_only=changed_only)
        self.weights = {}

    def take(self, policy):
        """The names that came; whatever did not come must be what it already has."""
        with self.pushes.next(policy) as push:
            taken = {name: tensor.clone() for name, tensor in push.weights()}
        self.weights |= taken
        assert push.num_tensors == len(taken) and push.is_empty == (not taken)
        assert push.num_bytes == sum(tensor.nbytes for tensor in taken.values())
        expected = dict(policy_weights(policy))
        assert self.weights.keys() == expected.keys()
        assert all(torch.equal(self.weights[name], tensor) for name, tensor in expected.items())
        assert push.is_whole == (taken.keys() == expected.keys())
        return set(taken)


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """Of this process: what one test does must not show in the next."""
    monkeypatch.setattr(pushes._steps, "has_foreign", False)
    return pushes._steps


@pytest.fixture
def policy(load):
    return load()


def names(policy, part=""):
    return {name for name, _ in policy_weights(policy) if part in name}


def step(policy, new_optimizer, part=""):
    """One update of the parameters that have `part` in their names."""
    parameters = [one for name, one in policy.model.named_parameters() if part in name and one.requires_grad]
    for one in parameters:
        one.grad = torch.ones_like(one)
    new_optimizer(parameters).step()
    for one in parameters:
        one.grad = None


def test_the_first_push_is_whole_and_one_after_nothing_is_empty(policy):
    holder = Holder()
    assert holder.take(policy) == names(policy)
    assert holder.take(policy) == holder.take(policy) == set()
    holder.pushes.forget()
    assert holder.take(policy) == names(policy)


def test_it_can_be_turned_off(policy):
    holder = Holder(changed_only=False)
    assert holder.take(policy) == holder.take(policy) == names(policy)


class Foreign(torch.optim.SGD):
    """Writes past PyTorch's books, as kernels of other libraries do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                one.data.sub_(one.grad)


@pytest.mark.parametrize(
    "new_optimizer",
    [
        pytest.param(lambda parameters: torch.optim.AdamW(parameters, fused=True), id="fused"),
        pytest.param(lambda parameters: torch.optim.AdamW(parameters, foreach=True), id="foreach"),
        pytest.param(lambda parameters: torch.optim.SGD(parameters, lr=0.1), id="plain"),
        pytest.param(Foreign, id="foreign"),
    ],
)
def test_what_an_optimizer_may_have_written_to_is_pushed_and_what_is_frozen_is_not(load, monkeypatch, new_optimizer):
    monkeypatch.setattr(pushes, "_sums", lambda tensors: [0] * len(tensors))  # the books alone
    policy = load(freeze=["vision"])
    frozen = {name for name in names(policy) if "visual" in name}
    assert frozen and frozen < names(policy)
    holder = Holder()
    holder.take(policy)
    step(policy, new_optimizer)
    assert holder.take(policy) == names(policy) - frozen
    step(policy, new_optimizer)
    assert holder.take(policy) == names(policy) - frozen


def test_a_foreign_optimizer_may_write_between_its_steps(policy):
    holder = Holder()
    for new_optimizer in (torch.optim.SGD, Foreign):
        holder.take(policy)
        assert holder.take(policy) == set()
        step(policy, new_optimizer)
    assert holder.take(policy) == holder.take(policy) == names(policy)


def test_a_gradient_makes_a_frozen_tensor_one_that_is_trained(policy, monkeypatch):
    monkeypatch.setattr(pushes, "_sums", lambda tensors: [0] * len(tensors))
    policy.model.requires_grad_(False)
    holder = Holder()
    norm = policy.model.model.language_model.norm.weight
    norm.requires_grad_(True)
    norm.grad = torch.ones_like(norm)
    norm.requires_grad_(False)
    holder.take(policy)
    torch.optim.AdamW([norm], fused=True).step()
    assert holder.take(policy) == {"model.norm.weight"}


def by_hand(policy):
    with torch.no_grad():
        policy.model.model.language_model.norm.weight.mul_(2)


def past_the_books(policy):
    policy.model.model.language_model.norm.weight.data.mul_(2)


def by_other_memory(policy):
    weight = policy.model.model.language_model.norm.weight
    weight.data = weight.data * 2


def by_another_tensor(policy):
    norm = policy.model.model.language_model.norm
    norm.weight = torch.nn.Parameter(norm.weight.detach() * 2)


def by_loading(policy):
    weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    policy.model.load_state_dict(
        weights | {"model.language_model.norm.weight": weights["model.language_model.norm.weight"] * 2}
    )


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("change", [by_hand, past_the_books, by_other_memory, by_another_tensor, by_loading])
def test_whoever_writes_it_arrives(policy, change, is_frozen):
    policy.model.requires_grad_(not is_frozen)
    holder = Holder()
    holder.take(policy)
    change(policy)
    assert holder.take(policy) == (names(policy) if change is by_loading else {"model.norm.weight"})
    assert holder.take(policy) == set()


def test_memory_that_is_given_out_again_is_not_taken_for_the_old():
    memory = numpy.zeros(1000, dtype=numpy.float32)
    weight = torch.nn.Parameter(torch.from_numpy(memory))
    address, held = weight.data_ptr(), pushes._books(weight)
    weight.data = torch.ones(1)  # the old memory is free
    weight.data = torch.from_numpy(memory)
    assert weight.data_ptr() == address and pushes._books(weight) != held


def test_another_tensor_of_the_same_memory_has_books_of_its_own():
    weight = torch.nn.Parameter(torch.zeros(1000))
    assert pushes._books(torch.nn.Parameter(weight.data)) != pushes._books(weight)


def test_another_policy_is_whole(load, policy):
    holder = Holder()
    other = load("instruct")
    assert holder.take(policy) == holder.take(other) == holder.take(policy) == names(policy)


def test_a_push_that_fails_leaves_nothing_for_sure(policy):
    holder = Holder()
    holder.take(policy)
    by_hand(policy)
    with pytest.raises(OSError, match="full"), holder.pushes.next(policy) as push:
        next(push.weights())
        raise OSError("full")
    assert holder.take(policy) == names(policy)


def test_of_an_adapter_only_what_it_is_merged_into_is_pushed(load):
    policy = load(adapter=LORA)
    merged = names(policy, "q_proj.weight") - names(policy, "visual")
    holder = Holder()
    holder.take(policy)
    assert holder.take(policy) == set()
    step(policy, lambda parameters: torch.optim.AdamW(parameters, fused=True))
    assert holder.take(policy) == merged and merged
    layer = next(module for name, module in policy.model.named_modules() if name.endswith("layers.1.self_attn.q_proj"))
    layer.scaling["default"] *= 2
    assert len(holder.take(policy)) == 1


def test_what_deepspeed_writes_is_always_pushed(policy):
    norm, vision = policy.model.model.language_model.norm.weight, next(policy.model.model.visual.parameters())
    assert all(pushes._books(one) == pushes._books(one) for one in (norm, vision))
    norm._hp_mapping = None  # as ZeRO-2 leaves it on what it trains
    vision.ds_id = 0  # and ZeRO-3 on everything
    vision.requires_grad_(False)
    assert all(pushes._books(one) != pushes._books(one) for one in (norm, vision))


def test_of_a_split_model_all_processes_push_what_one_must(policy, monkeypatch):
    holder = Holder()
    holder.take(policy)
    monkeypatch.setattr(pushes, "is_split", lambda model: True)
    elsewhere = frozenset(["model.language_model.norm.weight"])
    monkeypatch.setattr(pushes.distributed, "gathered", lambda names: [names, elsewhere])
    assert holder.take(policy) == {"model.norm.weight"}
