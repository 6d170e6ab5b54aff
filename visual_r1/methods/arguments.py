"""trl's own arguments under trl's own names, checked before anything is loaded."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch


def check_arguments(config_class: type, arguments: Mapping[str, Any], *, reserved: Collection[str]) -> None:
    """Refuses what trl would refuse later, or swallow.

    Args:
        config_class: ``trl.GRPOConfig`` or ``trl.SFTConfig``.
        arguments: the node ``method.trl``.
        reserved: names that the framework sets itself.

    Raises:
        ValueError: an unknown name (with the nearest known one), a value of another type, or a reserved name.
    """
    hints = get_type_hints(config_class)
    for name, value in arguments.items():
        if name in reserved:
            raise ValueError(f"method.trl.{name}: the framework sets this itself; leave it out")
        if name not in hints:
            near = get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"method.trl.{name}: {config_class.__name__} has no such argument{hint}")
        if not _fits(value, hints[name]):
            raise ValueError(f"method.trl.{name}={value!r}: expected {_spelled(hints[name])}")


def check_values(config_class: type, arguments: Mapping[str, Any]) -> None:
    """Refuses values of the right type that trl's own configuration refuses, for example an unknown scheduler.

    Raises:
        ValueError: with trl's reason in one line.
    """
    try:
        config_class(output_dir="", report_to=[], use_cpu=not torch.cuda.is_available(), **arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"method.trl: {' '.join(str(error).split())}") from error


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    kind = get_origin(hint) or hint
    if kind in (dict, list):
        return isinstance(value, Mapping if kind is dict else (list, tuple))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    return True  # an enumeration or a class of trl's: trl converts it and says what is wrong


def _spelled(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
