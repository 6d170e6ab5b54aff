"""A user's reward function with trl's signature, named by its dotted path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True)
class TrlFunction:
    """Holds ``f(prompts, completions, completion_ids=None, ..., **columns) -> list[float | None]`` for trl.

    trl calls ``function`` unchanged, synchronous or asynchronous, once a batch; None stands for "does not apply". It is
    no reward of a single rollout, so this object cannot be called, and its scores need not lie in [0, 1].

    Raises:
        ValueError: the path does not lead to something callable with the arguments that trl passes by name.
    """

    path: str
    """``package.module.function``, importable from where the run starts."""
    function: Callable[..., Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", _load(self.path))


def _load(path: str) -> Callable[..., Any]:
    module_path, _, name = path.rpartition(".")
    if not module_path or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"trl function {path!r}: write it as package.module.function")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        raise ValueError(
            f"trl function {path!r}: cannot import {module_path!r} ({error}); "
            "install the package, or put the folder that holds it on PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = f"is a {type(function).__name__}" if hasattr(module, name) else "does not exist"
        raise ValueError(f"trl function {path!r}: {name!r} {found} in {module_path!r}; name a function of that module")
    try:
        # Partial: further arguments without a default are columns of the dataset, not known here.
        inspect.signature(function).bind_partial(**dict.fromkeys(_ARGUMENTS))
    except (TypeError, ValueError) as error:  # ValueError: a builtin without a signature
        raise ValueError(
            f"trl function {path!r}: trl passes {', '.join(_ARGUMENTS)} and the dataset's columns by name ({error}); "
            "end the signature with **columns"
        ) from error
    return function
