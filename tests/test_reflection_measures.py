"""Saved rollouts and made-up trials, whose truth is known, become the right numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from visual_r1 import interventions as names
from visual_r1.examples import Example, Rollout
from visual_r1.files import write_parquet
from visual_r1.interventions import Completed, Probed, Trial
from visual_r1.metrics.reflection import Reflection
from visual_r1.reflection_measures import of_change, of_probed, of_saved, read_saved, schema, trial_rows
from visual_r1.reflection_record import sections, with_baselines
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import write_rollouts

WAIT = {"strict": Reflection(phrases=("wait",)), "loose": Reflection(phrases=("wait", "it"))}
QUESTION = "Where is the cup?\n(A) left\n(B) right"
NUM_PROMPTS = 600


def row(prompt, *, completion, choice, question=QUESTION, group=None):
    return {
        "example_id": str(prompt),
        "category": "Relation",
        "images": (),
        "question": question,
        "completion": completion,
        "solution": "B",
        "choice": choice,
        "correct": choice == "B",
        "num_tokens": 10,
        "is_truncated": False,
        "keyword_hits": (),
        **({} if group is None else {"group": group}),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two steps of training and a visit of the probe.

    Before any update, reflecting goes along with easy prompts and adds nothing; after one it adds 0.4 and is as
    frequent everywhere.
    """
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(1)
    for step, gain in ((1, 0.0), (2, 0.4)):
        rows = []
        for prompt in range(NUM_PROMPTS):
            ease = rng.uniform(0.1, 0.6)
            for _ in range(4):
                reflects = rng.random() < (0.5 if gain else ease)
                choice = "B" if rng.random() < ease + gain * reflects else "A"
                said = "It is left. Wait, no more." if reflects else "It is left."
                rows.append(row(f"{step}/{prompt}", completion=said, choice=choice, group=prompt))
        write_rollouts(folder.completions_at(step), rows, name="train")
    visit = [row(prompt, completion="Left. Wait.", choice=None, question="Where?") for prompt in range(20)]
    write_rollouts(folder.completions_at(0), visit, name="probe")
    return folder


@pytest.fixture(scope="module")
def saved(folder):
    written, left_out = read_saved(folder)
    assert left_out == []
    return written, with_baselines(of_saved(written, WAIT, level=0.95))


def one(measurements, **wanted):
    [found] = [each for each in measurements if all(getattr(each, key) == value for key, value in wanted.items())]
    return found


def test_a_training_rollout_was_drawn_before_its_steps_update(saved):
    written, _ = saved
    assert {source: {each.visit for each in rollouts} for source, rollouts in written.items()} == {
        "train": {0, 1},
        "probe": {0},
    }
    assert written["train"][0].choices == ("left", "right") and written["probe"][0].choices is None


def test_the_effect_within_a_prompt_is_the_one_that_was_put_in(saved):
    _, measurements = saved
    wanted = {"source": "saved train", "condition": "reflects", "keywords": "strict"}
    before, after = (one(measurements, measure="effect_within_prompt", step=step, **wanted) for step in (0, 1))
    assert before.interval[0] < 0 < before.interval[1] and before.estimate == pytest.approx(0, abs=0.06)
    assert after.interval[0] < 0.4 < after.interval[1] and after.estimate == pytest.approx(0.4, abs=0.06)
    assert (after.n_counts, before.baseline, after.baseline) == ("prompts", None, before.estimate)
    assert 300 < after.n < NUM_PROMPTS  # those with both kinds
    naive = one(measurements, measure="gap_over_all_prompts", step=0, **wanted)
    assert naive.interval[0] > 0  # easy prompts reflect more
    pooled = one(measurements, measure="effect_within_prompt", step=None, **wanted)
    assert before.estimate < pooled.estimate < after.estimate and pooled.model == "all steps"


def test_words_after_the_answer_are_no_reflection_that_led_to_it(tmp_path):
    said = {"B": "It is right.</think><answer>B</answer> Wait, no more.", "A": "It is left.</think><answer>A</answer>"}
    rows = [row(prompt, completion=said[choice], choice=choice) for prompt in range(5) for choice in "AB"]
    folder = RunFolder(tmp_path)
    write_rollouts(folder.completions_at(1), rows, name="train")
    measured = of_saved(read_saved(folder)[0], WAIT, level=0.95)
    assert one(measured, measure="reflection_rate", step=0, keywords="strict").estimate == 0.5
    assert not [each for each in measured if each.section in ("within_prompt", "flips") and each.keywords == "strict"]


def test_rates_are_by_list_and_step(saved):
    _, measurements = saved
    wanted = {"source": "saved probe", "measure": "reflection_rate", "step": 0}
    assert one(measurements, keywords="strict", **wanted).estimate == 1
    everywhere = one(measurements, source="saved train", measure="reflection_rate", step=1, keywords="loose")
    assert everywhere.estimate == 1 and everywhere.n == 4 * NUM_PROMPTS
    density = one(measurements, source="saved train", measure="reflection_per_1k_tokens", step=1, keywords="loose")
    assert 140 < density.estimate < 160  # one word of ten, and two where it reflects


def test_flips_are_counted_against_what_the_text_stated(saved):
    written, measurements = saved
    after = [each for each in written["train"] if each.visit == 1 and "Wait" in each.completion]
    wanted = {"source": "saved train", "measure": "flip_share", "step": 1, "keywords": "strict"}
    shares = {each.condition: each for each in measurements if all(getattr(each, k) == v for k, v in wanted.items())}
    right = sum(each.correct for each in after) / len(after)
    assert shares["wrong to right"].estimate == pytest.approx(right)
    assert shares["stays wrong"].estimate == pytest.approx(1 - right)
    assert sum(each.estimate for each in shares.values()) == pytest.approx(1)
    assert shares["no answer stated before"].n == len(after)
    gains = {"source": "saved train", "measure": "flip_accuracy_gain", "step": 1, "keywords": "strict"}
    for condition in ("final answer", "final answer, readable"):
        assert one(measurements, condition=condition, **gains).estimate == pytest.approx(right)
    # A question whose choices cannot be read has no flips, and no guessed ones.
    assert not [each for each in measurements if each.section == "flips" and each.source == "saved probe"]


def test_files_that_cannot_be_used_are_left_out_and_named(folder, tmp_path):
    other = RunFolder(tmp_path)
    assert read_saved(other) == ({}, [f"saved rollouts: {other.completions} holds none"])
    other.completions.mkdir()
    other.completions_at(1).write_bytes(b"PAR1 and no more")
    write_parquet(other.completions_at(2), [{"source": "train", "completion": "x"}])
    other.completions_at(3).write_bytes(folder.completions_at(1).read_bytes())
    written, left_out = read_saved(other)
    assert len(written["train"]) == 4 * NUM_PROMPTS
    assert [line.split(":")[0] for line in left_out] == [str(other.completions_at(step)) for step in (1, 2)]
    assert "example_id" in left_out[1] and "written by another version" in left_out[1]


def trial(condition, item, letter, *, generation=0):
    return Trial(
        condition=condition,
        example_id=str(item),
        category="Relation",
        question=QUESTION,
        choices=("left", "right"),
        solution="B",
        generation=generation,
        thought="It is left.",
        num_thought_tokens=item,
        answer=letter,
        choice=letter,
        correct=letter == "B",
        reflects=False,
    )


def completed(item, said, image):
    example = Example(
        id=str(item), images=(image,), question=QUESTION, choices=("left", "right"), solution="B", category="Relation"
    )
    rollout = Rollout(example=example, completion=said, num_tokens=5, is_truncated=False, prompt_opens_think=True)
    return Completed(
        rollout=rollout, item=item, generation=0, token_ids=(1, 2), begin=0, end=2, marker=None, is_open=True
    )


@pytest.fixture(scope="module")
def probed(rollout):
    """Ten items. Cut, the first four are right; whole, the first eight. Two items have no whole thought."""
    image = rollout("").example.images[0]
    cut = [trial(names.CUT, item, "B" if item < 4 else "A") for item in range(10)]
    whole = [trial(names.WHOLE_REFLECTING, item, None if item == 7 else "B") for item in range(8)]
    said = [completed(item, "It is left. Wait.</think><answer>B</answer>", image) for item in range(10)]
    return Probed(completed=tuple(said), trials=(*cut, *whole), num_without_partner=0)


@pytest.fixture(scope="module")
def measured(probed):
    return of_probed(probed, WAIT, model="after", step=3, keywords="strict", fractions=(0.0, 0.5, 1.0), level=0.95)


def test_conditions_are_paired_on_the_items_that_both_have(measured):
    section = [each for each in measured if each.section == "cut"]
    whole = one(section, measure="accuracy", condition=names.WHOLE_REFLECTING, against=None)
    assert (whole.estimate, whole.n) == (7 / 8, 8)
    difference = one(section, measure="accuracy", against=names.CUT)
    assert difference.condition == names.WHOLE_REFLECTING
    assert (difference.estimate, difference.n, difference.unit) == (3 / 8, 8, "difference")
    assert difference.p == pytest.approx(0.25)  # three of three the same way: 2 / 2^3
    assert difference.interval[0] < 3 / 8 < difference.interval[1]
    assert one(section, measure="readable_rate", condition=names.WHOLE_REFLECTING).estimate == 7 / 8
    assert one(section, measure="num_thought_tokens", condition=names.CUT).estimate == 4.5
    assert {(each.model, each.step, each.source, each.keywords) for each in section} == {
        ("after", 3, "probe", "strict")
    }


def test_a_policy_that_is_asked_before_its_reflection_needs_no_rule(measured):
    asked = {each.condition: each for each in measured if each.condition.startswith("asked: ")}
    assert {name.removeprefix("asked: "): each.estimate for name, each in asked.items() if each.estimate} == {
        "stays right": 4 / 8,
        "wrong to right": 3 / 8,
        "wrong, then no readable answer": 1 / 8,
    }
    assert {each.n for each in asked.values()} == {8}


def test_conditions_without_an_item_are_not_measured(measured):
    assert {each.section for each in measured} == {"rates", "within_prompt", "flips", "cut"} - {"within_prompt"}
    guessing = one(measured, condition="guessing at random")
    assert guessing.estimate == 0.5 and guessing.n == 10


def test_a_change_is_one_on_the_items_that_both_policies_have(rollout):
    """Before, the cut costs one item of 0 to 3 and after all of 2 to 5: on the shared two it goes from none to both."""
    image = rollout("").example.images[0]
    policies = []
    for items, wrong in ((range(4), {0}), (range(2, 6), {2, 3, 4, 5})):
        trials = [trial(names.WHOLE_REFLECTING, item, "B") for item in items]
        trials += [trial(names.CUT, item, "A" if item in wrong else "B") for item in items]
        policies.append(Probed(completed=(completed(0, "x", image),), trials=tuple(trials), num_without_partner=0))
    [change] = of_change(*policies, model="after", step=3, keywords="strict", level=0.95)
    assert (change.section, change.estimate, change.n, change.p) == ("cut", 1, 2, None)
    assert change.condition == f"{names.WHOLE_REFLECTING} - {names.CUT}" and change.against == "the same at step 0"


def test_items_that_all_agree_have_no_interval(rollout):
    image = rollout("").example.images[0]
    trials = [trial(name, item, "B") for name in (names.CUT, names.WHOLE_REFLECTING) for item in range(5)]
    probed = Probed(completed=(completed(0, "x", image),), trials=tuple(trials), num_without_partner=0)
    measured = of_probed(probed, WAIT, model="a", step=0, keywords="strict", fractions=(0.0, 1.0), level=0.95)
    difference = one([each for each in measured if each.section == "cut"], measure="accuracy", against=names.CUT)
    assert (difference.estimate, difference.interval, difference.p) == (0, None, 1)


def test_the_rows_hold_enough_to_count_again(probed, tmp_path):
    rows = trial_rows(probed, model="after")
    write_parquet(tmp_path / "rows.parquet", rows, schema=schema())
    assert len(rows) == 10 + 18
    assert {each["condition"] for each in rows} == {"undisturbed", names.CUT, names.WHOLE_REFLECTING}
    assert set(schema().names) == {key for each in rows for key in each}


def test_everything_is_json(saved, measured):
    _, measurements = saved
    text = json.dumps(sections([*measurements, *measured]), allow_nan=False)
    assert [part["name"] for part in json.loads(text)] == ["rates", "within_prompt", "flips", "cut"]
