"""A policy's weights by the names of its checkpoint, one tensor at a time: what another engine is given to sample from.

The policy is not changed. Adapters are merged here and in float32, because an adapter that is merged in place and taken
out again leaves its rounding behind.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

if TYPE_CHECKING:
    from visual_r1.models import Policy

_BUCKET_BYTES = 2**28
"""Weights that ZeRO-3 brings together at once: enough that messages are large, little beside a model."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint, the parameters that it is made of, and how."""

    name: str
    """In memory; a checkpoint's may differ."""
    parameters: tuple[torch.Tensor, ...]
    value: Callable[[], torch.Tensor]
    recipe: Hashable = None
    """What the value depends on beside the parameters."""


def policy_weights(policy: Policy, *, only: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the checkpoint that saving this policy now would write; a tied head is not among them.

    Merged tensors are float32, the others as they are kept; none may be kept beyond the next one. Where the weights are
    split over processes, all of them iterate together, and each is given every whole tensor.

    Args:
        policy: whose weights.
        only: names in memory, as `checkpoint_weights` has them; None: all.
    """
    model = _without_adapter(policy)
    weights = (weight for weight in _weights(model) if only is None or weight.name in only)
    with torch.no_grad():
        for bucket in _buckets(weights):
            with _whole([parameter for weight in bucket for parameter in weight.parameters]):
                for weight in bucket:
                    # One name in, one out: the checkpoint's names differ from those in memory.
                    [(name, tensor)] = revert_weight_conversion(model, {weight.name: weight.value()}).items()
                    yield name, tensor


def checkpoint_weights(policy: Policy) -> Iterator[Weight]:
    """What `policy_weights` is made of, in its order; nothing is merged or brought together yet."""
    return _weights(_without_adapter(policy))


def _without_adapter(policy: Policy) -> Any:
    return policy.model if policy.adapter is None else policy.model.get_base_model()


def _weights(model: Any) -> Iterator[Weight]:
    """The parameters and saved buffers in order, a shared one once, at the name that a checkpoint keeps."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for path, module in model.named_modules():
        if ".lora_" in f".{path}" or path.endswith(".base_layer"):
            continue
        if adapters := getattr(module, "lora_A", None):
            yield from _merged(path, module, [name for name in module.active_adapters if name in adapters])
            continue
        own = {**module._parameters, **module._buffers}
        for key, tensor in own.items():
            name = f"{path}.{key}" if path else key
            if tensor is not None and key not in module._non_persistent_buffers_set and name not in tied:
                yield Weight(name, (tensor,), lambda tensor=tensor: _full(tensor))


def _merged(path: str, module: Any, adapters: list[str]) -> Iterator[Weight]:
    base = module.get_base_layer()
    learned = tuple(layer[name].weight for name in adapters for layer in (module.lora_A, module.lora_B))

    def value() -> torch.Tensor:
        deltas = (_full(module.get_delta_weight(name)).float() for name in adapters)
        return sum(deltas, start=_full(base.weight).float())

    recipe = tuple((name, module.scaling[name]) for name in adapters)
    yield Weight(f"{path}.weight", (base.weight, *learned), value, recipe)
    if base.bias is not None:
        yield Weight(f"{path}.bias", (base.bias,), lambda: _full(base.bias).float())


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that FSDP has split; any other as it is."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _buckets(weights: Iterator[Weight]) -> Iterator[list[Weight]]:
    bucket: list[Weight] = []
    size = 0
    for weight in weights:
        bucket.append(weight)
        size += sum(getattr(one, "ds_numel", one.numel()) * one.element_size() for one in weight.parameters)
        if size >= _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


@contextmanager
def _whole(parameters: list[torch.Tensor]) -> Generator[None]:
    """Brings together what ZeRO-3 has split, in every process."""
    split = [one for one in parameters if hasattr(one, "ds_id")]
    if not split:
        yield
        return
    with import_module("deepspeed").zero.GatheredParameters(split):
        yield
