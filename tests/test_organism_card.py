"""The card of an organism: its figures by hand, and the whole of it from a folder that was built."""

from __future__ import annotations

import pytest

from visual_r1.examples import Example, Rollout
from visual_r1.files import read_json
from visual_r1.metrics.reflection import Reflection
from visual_r1.organism_card import Abilities, card, page, summarise
from visual_r1.organisms.build import build
from visual_r1.organisms.corpus import Mixture
from visual_r1.organisms.pretraining import Recipe

REFLECTION = Reflection(phrases=("wait",))
DIRECT, CHECKED = "It is left.", "It is right. Wait, let me check again. The red circle: x1. The blue square: x4."


def _rollout(thought: str, letter: str | None, number: int, *, num_tokens: int = 10) -> Rollout:
    answer = "" if letter is None else f"</think>\n<answer>({letter})</answer>"
    return Rollout(
        example=Example(
            id=str(number),
            images=(),
            question="?",
            choices=("left", "right"),
            solution="A",
            category="Relation",
        ),
        completion=f"{thought}{answer}",
        num_tokens=num_tokens,
        is_truncated=False,
        prompt_opens_think=True,
    )


def test_figures_by_hand():
    groups = [
        [_rollout(DIRECT, "A", 0), _rollout(DIRECT, "B", 0), _rollout(CHECKED, "A", 0, num_tokens=30)],
        [_rollout(DIRECT, "B", 1), _rollout(CHECKED, "A", 1, num_tokens=30), _rollout(CHECKED, None, 1)],
        [_rollout(DIRECT, "B", 2), _rollout(DIRECT, "A", 2), _rollout(DIRECT, "A", 2)],
    ]
    figures = summarise(Abilities(greedy=[group[0] for group in groups], groups=groups), REFLECTION)
    assert figures["greedy"]["accuracy"]["estimate"] == pytest.approx(1 / 3)
    assert figures["sampled"]["accuracy"]["estimate"] == pytest.approx((2 / 3 + 1 / 3 + 2 / 3) / 3)
    assert figures["sampled"]["readable"]["estimate"] == pytest.approx(8 / 9)
    assert figures["sampled"]["reflects"]["estimate"] == pytest.approx(3 / 9)
    assert figures["pass_at_k"]["1"]["estimate"] == pytest.approx(5 / 9)
    direct, checked = figures["ways"]["direct"], figures["ways"]["checked"]
    assert (direct["share"], direct["num_readable"]) == (pytest.approx(6 / 9), 6)
    # Over questions: 1/2, 0 and 2/3, not three of six.
    assert direct["right"]["estimate"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert checked["right"]["estimate"] == 1.0
    assert checked["length"] == pytest.approx(70 / 3)
    step = next(step for step in figures["ladder"] if (step["of"], step["minus"]) == ("checked", "direct"))
    # On the two questions that were answered in both ways.
    assert step["num_questions"] == 2
    assert step["difference"]["estimate"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["ways"]["rambling"] == {"share": 0.0, "num_readable": 0, "right": None, "length": None}


def test_a_card_is_written_beside_the_weights(tmp_path):
    recipe = Recipe(
        vision_steps=1,
        coordinate_steps=1,
        exercise_steps=1,
        dialogue_steps=2,
        instruct_steps=1,
        vision_scenes=2,
        scenes=2,
        chat_every=2,
        mixture=Mixture(direct=0.34, careful=0.1),
    )
    for folder in build(tmp_path, recipe=recipe, seed=4):
        contents = card(folder, num_examples=8, num_repeated=8, repeats=2, phrases=("wait",))
        assert read_json(folder / "card.json") == contents
        text = (folder / "README.md").read_text()
        assert text == page(contents)
        assert "* Seed 4;" in text
        assert "10% read numbers *without* reflecting first" in text
        assert "| accuracy, Distance |" in text
        assert ("Its tuning answers" in text) == (folder.name == "nano-instruct")
        assert "`visual-r1 organism card FOLDER --num 8 --repeated 8 --repeats 2` measures it." in text
        # One of thousands is not none.
        contents["measured"]["sampled"]["reflects"] = {"estimate": 0.00016, "low": 0.0, "high": 0.0005}
        assert "| 0.02 % [0.00, 0.05] |" in page(contents)


def test_a_folder_that_is_no_organism_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no organism\.json"):
        card(tmp_path, num_examples=8, num_repeated=8, repeats=1, phrases=("wait",))
    with pytest.raises(ValueError, match="7 of them repeatedly: the latter must be 8 or more"):
        card(tmp_path, num_examples=8, num_repeated=7, repeats=1, phrases=("wait",))
