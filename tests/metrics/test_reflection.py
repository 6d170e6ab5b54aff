"""Reflection, and the keyword lists of conf/keywords."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from visual_r1.metrics.reflection import Reflection

CONF = Path(__file__).parents[2] / "conf" / "keywords"
LISTS = sorted(path.stem for path in CONF.glob("*.yaml"))


def load(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("phrases", "text", "found"),
    [
        pytest.param(["wait"], "Wait, no. WAIT!", ("wait", "wait"), id="either-case-and-each-time"),
        pytest.param(["wait"], "waiting, await, wait_here", (), id="whole-words"),
        pytest.param(["wait*"], "waiting, await", ("wait",), id="prefix"),
        pytest.param(["*wait"], "waiting, await", ("wait",), id="suffix"),
        pytest.param(["*wait*"], "waiting, await", ("wait", "wait"), id="substring"),
        pytest.param(
            ["possibl*"], "It is possible, possibly impossible", ("possibl", "possibl"), id="published-prefix"
        ),
        pytest.param(["let me check"], "let  me\n check", ("let me check",), id="any-blanks-between"),
        pytest.param(["let me check"], "let me , check", (), id="nothing-else-between"),
        pytest.param(["let me check"], "Wait , let me check again .", ("let me check",), id="tokens-set-apart"),
        pytest.param(["re-examine"], "re-examine it; reexamine it", ("re-examine",), id="hyphen"),
        pytest.param(["check", "double-check"], "check, double-check", ("check", "double-check"), id="longest-counts"),
        pytest.param(["check", "check again"], "check again", ("check again",), id="longest-counts-in-any-order"),
        pytest.param(["check again", "check"], "check against", ("check",), id="the-shorter-where-the-longer-fails"),
        pytest.param(["let me check", "check again"], "let me check again", ("let me check",), id="the-first-counts"),
        pytest.param(["a.b"], "axb a.b", ("a.b",), id="no-pattern"),
        pytest.param(["that's not right"], "That's not right", ("that's not right",), id="apostrophe"),
        pytest.param(["wait"], "", (), id="nothing"),
    ],
)
def test_find(phrases, text, found):
    assert Reflection(phrases=tuple(phrases)).find(text) == found


def test_rates(rollout):
    reflection = Reflection(phrases=("wait", "check again"))
    values = reflection(
        [
            rollout("wait wait check again <answer>B</answer>", num_tokens=100),
            rollout("wait <answer>A</answer>", num_tokens=50),
            rollout("left <answer>A</answer>", num_tokens=50),
            rollout("left <answer>A</answer>", num_tokens=50),
        ]
    )
    assert values == {
        "reflection/any_rate": 2 / 4,
        "reflection/any_rate_correct": 1.0,
        "reflection/any_rate_incorrect": pytest.approx(1 / 3),
        "reflection/per_1k_tokens": 1000 * 4 / 250,
        "reflection/keyword/wait": 2 / 4,
        "reflection/keyword/check_again": 1 / 4,
    }


def test_the_prompt_is_not_read(rollout):
    # "left" and "plate" stand in the question.
    values = Reflection(phrases=("plate",))([rollout("<answer>B</answer>")])
    assert values["reflection/any_rate"] == 0.0


def test_a_phrase_counts_within_longer_ones_in_its_own_curve_and_once_per_token(rollout):
    reflection = Reflection(phrases=("let me check", "check again", "*check*", "wait*"))
    values = reflection([rollout("let me check again", num_tokens=10), rollout("waiting", num_tokens=10)])
    assert values["reflection/keyword/let_me_check"] == 1 / 2
    assert values["reflection/keyword/check_again"] == 1 / 2
    assert values["reflection/keyword/check"] == 1 / 2
    assert values["reflection/keyword/wait"] == 1 / 2
    assert values["reflection/any_rate"] == 1.0
    assert values["reflection/per_1k_tokens"] == 1000 * 2 / 20


@pytest.mark.parametrize(
    "phrases",
    [(), "wait", ("",), ("*",), ("wait", " "), ("...",), ("wa*it",), ("wait**",), ("wait", "Wait"), ("wait", "wait*")],
    ids=repr,
)
def test_a_wrong_list_is_refused(phrases):
    with pytest.raises(ValueError, match="phrase"):
        Reflection(phrases=phrases)


def test_every_list_is_found():
    assert set(LISTS) >= {"default", "visualthinker", "oat_zero", "dr_grpo", "simplerl_zoo", "vlaa_thinker"}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_finds_each_of_its_own_phrases(name):
    values = load(name)
    assert values.keys() == {"name", "phrases"}
    assert values["name"] == name
    reflection = Reflection(phrases=values["phrases"])
    for phrase in values["phrases"]:
        word = phrase.strip("*")
        assert word in reflection.find(f"So . {word.upper()} .") or len(reflection.find(word)) == 1


@pytest.mark.parametrize(
    ("name", "num_phrases"),
    [("visualthinker", 6), ("oat_zero", 11), ("dr_grpo", 15), ("simplerl_zoo", 7), ("vlaa_thinker", 4)],
)
def test_a_published_list_is_whole_and_counts_substrings(name, num_phrases):
    phrases = load(name)["phrases"]
    assert len(phrases) == num_phrases
    assert all(phrase.startswith("*") and phrase.endswith("*") for phrase in phrases)


@pytest.mark.parametrize(
    ("text", "reflects"),
    [
        ("But wait! I can think of something else.", True),
        ("wait , let me check again .", True),
        ("Hmm, that's not right.", True),
        ("Let me look at the image again.", True),
        ("First, check the chair. It is possible to see yet another one, however small.", False),
        ("To verify the distance, measure from the cup to the plate.", False),
        ("Two people are waiting for the bus.", False),
    ],
)
def test_the_default_list_is_strict(text, reflects):
    assert bool(Reflection(phrases=load("default")["phrases"]).find(text)) == reflects
