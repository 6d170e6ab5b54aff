"""A user's function with trl's signature."""

from __future__ import annotations

from importlib import import_module

import pytest

from visual_r1.rewards.trl_function import TrlFunction

MODULE = """
SETTING = 3

def documented(
    prompts, completions, completion_ids=None, trainer_state=None, log_extra=None, log_metric=None, **columns
):
    return [1.0 if "B" in completion[0]["content"] else None for completion in completions]

def needs_a_column(completions, solution, **kwargs):
    return [float(one in completion[0]["content"]) for completion, one in zip(completions, solution)]

async def waits(completions, **kwargs):
    return [0.0 for _ in completions]

def of_one_rollout(rollout):
    return 1.0
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "rewards.py").write_text(MODULE)
    (tmp_path / "my_package" / "broken.py").write_text("import a_module_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["documented", "needs_a_column", "waits"])
def test_the_function_is_handed_over_unchanged(package, name):
    rewards = import_module("my_package.rewards")
    held = TrlFunction(f"my_package.rewards.{name}")
    assert held.function is getattr(rewards, name)
    assert held == TrlFunction(f"my_package.rewards.{name}")
    assert not callable(held)


def test_none_stays_none(package):
    held = TrlFunction("my_package.rewards.documented")
    completions = [[{"role": "assistant", "content": text}] for text in ("B", "A")]
    assert held.function(prompts=["", ""], completions=completions, completion_ids=[[1], [2]], solution="BB") == [
        1.0,
        None,
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("length", "write it as package.module.function"),
        ("", "write it as package.module.function"),
        ("my_package/rewards.py:documented", "write it as package.module.function"),
        ("no_such_package.rewards.f", "cannot import 'no_such_package.rewards' .*PYTHONPATH"),
        ("my_package.broken.f", "a_module_that_is_not_installed"),
        ("my_package.rewards.no_such", "'no_such' does not exist in 'my_package.rewards'"),
        ("my_package.rewards.SETTING", "'SETTING' is a int"),
        ("builtins.dict", "no signature"),
        ("my_package.rewards.of_one_rollout", r"end the signature with \*\*columns"),
    ],
)
def test_a_wrong_path_is_refused_in_one_line(package, path, message):
    with pytest.raises(ValueError, match=message) as caught:
        TrlFunction(path)
    assert repr(path) in str(caught.value)
    assert "\n" not in str(caught.value)
