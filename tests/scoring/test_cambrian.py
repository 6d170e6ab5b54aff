"""CV-Bench's own average: each collection counts, whatever its size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from visual_r1.evaluation import Report
from visual_r1.metrics.reflection import Reflection
from visual_r1.scoring.cambrian import Cambrian
from visual_r1.scoring.strict import Strict
from visual_r1.statistics import Stratum, weighted_wilson

# Right and wrong responses of each collection, with the kind of question that they are to.
COUNTS = {
    ("ADE20K", "Count"): (3, 1),
    ("COCO", "Relation"): (1, 1),
    ("Omni3D", "Depth"): (1, 3),
    ("ADE20K", "Relation"): (0, 4),
}


@pytest.fixture
def rollouts(rollout):
    made = []
    for (subset, category), (right, wrong) in COUNTS.items():
        for index in range(right + wrong):
            case = rollout(f"<answer>{'B' if index < right else 'A'}</answer>", category=category)
            made.append(replace(case, example=replace(case.example, id=f"{subset}/{len(made)}", subset=subset)))
    return tuple(made)


def measured(rollouts):
    report = Report(
        benchmark="small",
        rollouts=rollouts,
        blank_rollouts=tuple(replace(one, completion="<answer>B</answer>") for one in rollouts),
        reflection=Reflection(phrases=("wait",)),
        scorers={"strict": Strict(), "cambrian": Cambrian()},
    )
    return report.summary()["scorers"]


def test_the_whole_is_the_mean_of_2d_and_3d(rollouts):
    scorers = measured(rollouts)
    assert scorers["strict"]["accuracy"] == 5 / 14
    cambrian = scorers["cambrian"]
    # ADE20K 3 of 8, COCO 1 of 2, Omni3D 1 of 4
    assert cambrian["accuracy"] == pytest.approx(((3 / 8 + 1 / 2) / 2 + 1 / 4) / 2)
    groups = {name: values["accuracy"] for name, values in cambrian["by_group"].items()}
    assert groups == pytest.approx({"2D": (3 / 8 + 1 / 2) / 2, "3D": 1 / 4, "ADE20K": 3 / 8, "COCO": 1 / 2})
    expected = weighted_wilson([Stratum(0.25, 3, 8), Stratum(0.25, 1, 2), Stratum(0.5, 1, 4)])
    assert cambrian["accuracy_interval"] == [expected.low, expected.high]


def test_a_category_is_the_mean_of_the_collections_in_it(rollouts):
    categories = {name: values["accuracy"] for name, values in measured(rollouts)["cambrian"]["by_category"].items()}
    assert categories == pytest.approx({"Count": 3 / 4, "Relation": (0 / 4 + 1 / 2) / 2, "Depth": 1 / 4})


def test_what_stands_beside_it_is_averaged_alike(rollouts):
    # A fourth choice for COCO's two items alone: chance is 1/4 there and 1/2 elsewhere. All solutions are B.
    four = ("left", "right", "above", "below")
    rollouts = tuple(
        replace(one, example=replace(one.example, choices=four)) if one.example.subset == "COCO" else one
        for one in rollouts
    )
    cambrian = measured(rollouts)["cambrian"]
    assert cambrian["chance"] == pytest.approx(((1 / 2 + 1 / 4) / 2 + 1 / 2) / 2)
    assert cambrian["majority"] == 1 and cambrian["blank_accuracy"] == 1
    # COCO's items answer A now, its share of the constant answer's accuracy goes: 0.25 of the whole.
    other = tuple(
        replace(one, example=replace(one.example, solution="A")) if one.example.subset == "COCO" else one
        for one in rollouts
    )
    assert measured(other)["cambrian"]["majority"] == pytest.approx(1 - 1 / 8)


@pytest.mark.parametrize(
    ("subset", "problem"),
    [
        (None, "ADE20K/0 has no subset, and the average is over ADE20K, COCO, Omni3D"),
        ("ScanNet", "ADE20K/0 has subset 'ScanNet'"),
    ],
)
def test_items_of_no_collection_have_no_average(rollouts, subset, problem):
    first = replace(rollouts[0], example=replace(rollouts[0].example, subset=subset))
    scorers = measured((first, *rollouts[1:]))
    assert scorers["cambrian"]["accuracy"] is None and problem in scorers["cambrian"]["problem"]
    assert scorers["strict"]["accuracy"] == 5 / 14


def test_a_part_of_the_benchmark_is_not_passed_off_as_the_whole(rollouts):
    flat = tuple(one for one in rollouts if one.example.subset != "Omni3D")
    assert measured(flat)["cambrian"]["problem"] == "no item is from Omni3D"
