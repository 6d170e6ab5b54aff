"""What every reward of conf/reward/term must hold, present and future, and what the recipes are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf" / "reward"
TERMS = sorted(path.stem for path in (CONF / "term").glob("*.yaml") if path.stem != "trl_function")
RECIPES = sorted(path.stem for path in CONF.glob("*.yaml"))
MODULES = sorted(
    path.stem
    for path in (CONF.parents[1] / "visual_r1" / "rewards").glob("*.py")
    if path.stem not in {"__init__", "weighted"}
)

SPREAD = [
    ("<think>x</think><answer>B</answer>", 20, False),
    ("<think>x</think><answer>A</answer>", 20, False),
    ("<answer>B</answer>", 90, False),
    ("wait , let me check again . " * 20, 100, True),
    ("", 1, False),
]


@pytest.mark.parametrize("term", TERMS)
def test_every_reward_is_bounded_and_not_constant(term, build_term, rollout):
    reward = build_term(term)
    scores = {
        reward(rollout(completion, num_tokens=num_tokens, is_truncated=is_truncated))
        for completion, num_tokens, is_truncated in SPREAD
    }
    assert min(scores) >= 0.0 and max(scores) <= 1.0
    assert len(scores) > 1


@pytest.mark.parametrize("term", [*TERMS, "trl_function"])
def test_every_term_has_a_schema_a_weight_and_a_class_of_ours(term):
    values = yaml.safe_load((CONF / "term" / f"{term}.yaml").read_text())
    assert values["defaults"] == ["term_schema", "_self_"]
    assert isinstance(values["weight"], float)
    assert values["function"]["_target_"].startswith("visual_r1.rewards.")


def test_every_term_is_found():
    # An empty list would make the tests above pass by running nothing.
    assert {"accuracy", "format"} <= set(TERMS)
    modules = {
        yaml.safe_load((CONF / "term" / f"{term}.yaml").read_text())["function"]["_target_"].split(".")[2]
        for term in [*TERMS, "trl_function"]
    }
    assert modules == set(MODULES), "a reward without its YAML, or the other way round"


def terms_of(recipe):
    values = yaml.safe_load((CONF / f"{recipe}.yaml").read_text())
    return {
        key.removeprefix("term@terms."): term
        for default in values["defaults"]
        if isinstance(default, dict)
        for key, term in default.items()
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_made_of_terms_under_their_own_names(recipe):
    terms = terms_of(recipe)
    assert yaml.safe_load((CONF / f"{recipe}.yaml").read_text())["name"] == recipe
    assert {"accuracy", "format"} <= set(terms), "every run shows both curves"
    assert set(terms.values()) <= set(TERMS)
    assert all(name == term for name, term in terms.items())


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [  # the two sums of the paper: every weight is 1
        ("accuracy_format", {"accuracy": 1.0, "format": 1.0}),
        ("length_bonus", {"accuracy": 1.0, "format": 1.0, "length_bonus": 1.0}),
    ],
)
def test_the_recipes_of_the_paper(recipe, weights):
    assert "terms" not in yaml.safe_load((CONF / f"{recipe}.yaml").read_text())
    found = {
        name: yaml.safe_load((CONF / "term" / f"{term}.yaml").read_text())["weight"]
        for name, term in terms_of(recipe).items()
    }
    assert found == weights


def test_the_length_bonus_is_a_thousandth_a_token(build_term, rollout):
    assert build_term("length_bonus")(rollout("", num_tokens=100)) == pytest.approx(0.1)


def test_every_recipe_is_found():
    assert {"accuracy_format", "accuracy_only", "hard", "length_bonus", "cosine", "overlong"} <= set(RECIPES)
