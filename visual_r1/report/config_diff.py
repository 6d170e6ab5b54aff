"""What two or more configurations differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_OF_THE_PLACE = frozenset(("name", "seed", "runs_dir"))


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Dotted key to the value that each configuration has there, of keys that are not the same in all.

    A key that a configuration does not have is "-". The run's name, seed and folder are left out.
    """
    flat = [dict(_flat(config)) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = {key: tuple(one.get(key, "-") for one in flat) for key in keys if key not in _OF_THE_PLACE}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        yield prefix, ", ".join(map(str, node)) or "none"
    else:
        yield prefix, "null" if node is None else str(node)
