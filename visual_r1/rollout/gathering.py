"""The whole weights of a model that is split over processes, by DeepSpeed's ZeRO-3 or by PyTorch's FSDP2."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

_SPLITTERS = ("deepspeed.", "torch.distributed.fsdp.")
"""The packages whose hooks gather a layer's weights for its forward pass and let go of them after it."""


def is_split(model: torch.nn.Module) -> bool:
    """Whether each process holds a part of the model's weights only."""
    return _is_zero3(model) or any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def whole(model: torch.nn.Module) -> Generator[None]:
    """Every process holds all of a split model's weights while the block runs; does nothing for a model that is whole.

    All processes enter together, which costs one gathering and the memory of a whole copy. Within the block each may
    run the model as often as it likes, without gradients and without the others. Nothing that the block writes into
    the weights is kept.
    """
    if _is_zero3(model):
        from deepspeed.runtime.zero import GatheredParameters

        # By the model's own list, which names a tied weight once.
        with GatheredParameters(list(model.parameters())), _without_splitters(model):
            yield
    elif is_split(model):
        parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
        # The outermost first: it makes the streams that all of them gather on, in a run's first probe as well.
        parts[0]._get_fsdp_state()._lazy_init()
        for part in parts:
            part.unshard()
        try:
            with _without_splitters(model):
                yield
        finally:
            for part in parts:
                part.reshard()
    else:
        yield


def whole_state(model: torch.nn.Module, *, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a split model, whole, in the memory of rank 0's CPU; the other processes get nothing.

    All processes call it together. A tied weight comes once. Where the model itself holds the float32 weights that the
    optimizer changes (FSDP), these are what is returned.

    Args:
        model: a model that `is_split`.
        trained_only: leaves out what is frozen.
    """
    trained = {name for name, one in model.named_parameters() if one.requires_grad or not trained_only}
    if not _is_zero3(model):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
        state: dict[str, Any] = get_model_state_dict(model, options=options)
        return {name: weight for name, weight in state.items() if name in trained}
    with whole(model):
        if torch.distributed.get_rank():
            return {}
        # A weight at a time: on the GPU there is no room for a second copy.
        return {name: weight.detach().cpu() for name, weight in model.named_parameters() if name in trained}


def _is_zero3(model: torch.nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def _without_splitters(model: torch.nn.Module) -> Generator[None]:
    """Takes the hooks off that would wait for the other processes at every layer, and puts them back in their places.

    trl 1.16 registers ZeRO-3's hooks anew instead, and leaves FSDP2's where they are.
    """
    taken: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if any(_belongs_to_splitter(hook) for hook in hooks.values()):
                taken.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if _belongs_to_splitter(hook)]:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in taken:
            hooks.clear()
            hooks.update(before)


def _belongs_to_splitter(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_SPLITTERS)
