"""Which of a policy's weights an engine does not have yet: what cannot have changed since the last push stays away.

Nothing is guessed. A tensor counts as unchanged where PyTorch has booked no write to it, no optimizer can have written
to it, and a sum of its bits is what it was, which meets writes that go past the books (through ``.data``). Where the
books cannot be read, as with what DeepSpeed splits, it is pushed.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_pre_hook

from visual_r1 import distributed
from visual_r1.rollout.gathering import is_split
from visual_r1.rollout.weights import Weight, checkpoint_weights, policy_weights

if TYPE_CHECKING:
    from visual_r1.models import Policy

_AT_ONCE = 2**24
"""Values that are summed at once: as 64-bit integers they are up to eight times as large."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element."""


@dataclass
class _Steps:
    """The optimizer steps of this process."""

    count: int = 0
    has_foreign: bool = False
    """One was of an optimizer that is not PyTorch's own: it may write to weights between its steps as well."""

    def add(self, optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
        self.count += 1
        self.has_foreign |= not type(optimizer).__module__.startswith("torch.")


_steps = _Steps()
# PyTorch 2.13 books the steps of its plain optimizers as writes, and those of its fused ones not.
register_optimizer_step_pre_hook(_steps.add)


@dataclass(kw_only=True)
class Push:
    """Weights on their way to an engine."""

    policy: Policy
    names: frozenset[str]
    is_whole: bool
    """They are all that the policy has; else the engine has the others already."""
    num_tensors: int = 0
    """What `weights` has handed out."""
    num_bytes: int = 0
    """The same, as it was handed out: merged weights in float32, the others as the policy keeps them."""

    @property
    def is_empty(self) -> bool:
        """The engine has them all."""
        return not self.names

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `policy_weights`; where the weights are split over processes, the same ones in all of them."""
        for name, tensor in policy_weights(self.policy, only=self.names):
            self.num_tensors += 1
            self.num_bytes += tensor.nbytes
            yield name, tensor


@dataclass(kw_only=True)
class Pushes:
    """What an engine was given last."""

    changed_only: bool
    """Otherwise every push is whole."""
    _marks: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def forget(self) -> None:
        """The engine has lost its weights, or has been given somebody else's."""
        self._marks = {}

    @contextmanager
    def next(self, policy: Policy) -> Generator[Push]:
        """The weights that the engine does not have; it has them where the block ends, and none for sure if it fails.

        Of a model that is split over processes, all of them enter together.
        """
        weights = list(checkpoint_weights(policy))
        if not self.changed_only:
            yield Push(policy=policy, names=frozenset(one.name for one in weights), is_whole=True)
            return
        held, self._marks = self._marks, {}
        marks = _marks(weights)
        names = frozenset(name for name, mark in marks.items() if held.get(name) != mark)
        if is_split(policy.model):  # each process knows of its own part
            names = frozenset[str]().union(*distributed.gathered(names))
        yield Push(policy=policy, names=names, is_whole=len(names) == len(marks))
        self._marks = marks


def _marks(weights: list[Weight]) -> dict[str, Any]:
    """What differs, by weight, as soon as one of its tensors may have changed. Holds no memory of theirs."""
    parts = {id(one): one for weight in weights for one in weight.parameters}
    books = dict(zip(parts, map(_books, parts.values()), strict=True))
    sums = dict(zip(parts, _sums([_own(one) for one in parts.values()]), strict=True))
    return {
        weight.name: (weight.recipe, *((books[id(one)], sums[id(one)]) for one in weight.parameters))
        for weight in weights
    }


def _books(tensor: torch.Tensor) -> Any:
    """What PyTorch knows of a tensor's last write; equal to nothing where that is not enough."""
    is_trained = tensor.requires_grad or (tensor.is_leaf and tensor.grad is not None)
    # `ds_id`: split by ZeRO-3; `_hp_mapping`: trained by ZeRO-1 or 2. Both write through `.data`.
    is_foreign = is_trained and (_steps.has_foreign or hasattr(tensor, "_hp_mapping"))
    own = _own(tensor)
    if hasattr(tensor, "ds_id") or is_foreign or tensor.is_inference() or own.is_inference():
        return object()
    memory = (StorageWeakRef(own.untyped_storage()), own.storage_offset(), own.shape, own.stride(), own.dtype)
    return _Same(tensor), memory, tensor._version, own._version, _steps.count if is_trained else None


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that FSDP has split; any other as it is."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _sums(tensors: list[torch.Tensor]) -> list[int]:
    """Of each tensor's bits as integers, modulo 2**64."""
    if not tensors:
        return []
    bits = [one.detach().view(_INTEGERS[one.element_size()]).flatten() for one in tensors]
    sums = [torch.stack([part.sum(dtype=torch.int64) for part in one.split(_AT_ONCE)]).sum() for one in bits]
    return torch.stack([one.to(sums[0].device) for one in sums]).tolist()  # one wait for the GPU


class _Same:
    """Equal to another of the same tensor, while that lives: a number would be given to a later one again."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = weakref.ref(tensor)

    def __eq__(self, other: object) -> bool:
        tensor = self._tensor()
        return isinstance(other, _Same) and tensor is not None and tensor is other._tensor()

    __hash__ = None
