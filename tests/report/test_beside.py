"""A run beside the published rows: only like is subtracted from like, and where it is not the reason is said."""

from __future__ import annotations

from copy import deepcopy
from math import sqrt

import pytest

from visual_r1.evaluation import Report, summarise
from visual_r1.examples import Example, Rollout
from visual_r1.metrics.reflection import Reflection
from visual_r1.report.beside import Beside, Compared, beside, unpaired_difference
from visual_r1.report.published import published
from visual_r1.report.published_table import beside_lines
from visual_r1.report.table import run_table
from visual_r1.scoring.strict import Strict
from visual_r1.statistics import wilson

ITEMS = published().benchmarks["cvbench"].categories
AFTER = {"Count": 480, "Relation": 455, "Depth": 348, "Distance": 360}
BEFORE = {"Count": 400, "Relation": 130, "Depth": 60, "Distance": 180}
RECIPE = {"model": "Qwen/Qwen2-VL-2B", "style": "base", "method": "grpo", "freeze": "nothing", "adapter": "none"}


def measured(right, items):
    share = wilson(right, items)
    return {"num_items": items, "accuracy": share.estimate, "accuracy_interval": [share.low, share.high]}


def scored(right):
    parts = {name: measured(count, ITEMS[name]) for name, count in right.items()}
    return {**measured(sum(right.values()), sum(ITEMS.values())), "by_category": parts}


def summary(**changes):
    """Of a run that was trained, on all of CV-Bench; its strict scores are 10 items a category lower."""
    times = {"before": BEFORE, "after": AFTER}
    strict = {when: scored({name: count - 10 for name, count in right.items()}) for when, right in times.items()}
    return {
        "benchmark": "cvbench",
        "num_items": sum(ITEMS.values()),
        "by_category": {name: {when: strict[when]["by_category"][name] for when in times} for name in ITEMS},
        "scorers": {"strict": strict, "reference": {when: scored(right) for when, right in times.items()}},
        **RECIPE,
        **changes,
    }


def compare(run) -> Beside:
    compared = beside(run)
    assert compared is not None
    return compared


def of(compared: Beside, key, when="after") -> Compared:
    (found,) = [one for one in compared.rows if (one.row.key, one.when) == (key, when)]
    return found


def test_the_difference_is_newcombes():
    # His table II, method 10: 56/70 - 48/80 = 0.2000 with 0.0524 to 0.3339.
    difference = unpaired_difference(wilson(56, 70), wilson(48, 80))
    assert (difference.estimate, difference.low, difference.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_the_papers_scorer_is_compared_and_the_strict_one_is_not():
    compared = compare(summary())
    assert compared.reason is None
    run, row = wilson(sum(AFTER.values()), 2638), wilson(1569, 2638)
    difference = of(compared, "cvbench/grpo").difference
    assert difference is not None
    assert difference.estimate == pytest.approx(run.estimate - row.estimate)
    assert difference.low == pytest.approx(
        difference.estimate - sqrt((run.estimate - run.low) ** 2 + (row.high - row.estimate) ** 2)
    )
    assert compared.measured["strict", "after"].estimate == pytest.approx((sum(AFTER.values()) - 40) / 2638)
    assert compared.measured["reference", "before"].estimate == pytest.approx(sum(BEFORE.values()) / 2638)


def test_the_same_by_category():
    by_category = of(compare(summary()), "cvbench/grpo").by_category
    assert list(by_category) == list(ITEMS)
    assert by_category["Depth"].estimate == pytest.approx((348 - 325) / 600)


def test_every_row_stands_against_the_result_and_the_starting_points_against_the_start_too():
    compared = compare(summary())
    rows = [(one.row.key, one.when) for one in compared.rows]
    assert rows == [("cvbench/base", "before"), *((row.key, "after") for row in published().on("cvbench"))]
    differences = [of(compared, "cvbench/base", when).difference for when in ("before", "after")]
    expected = [share - 0.3138 for share in (770 / 2638, 1643 / 2638)]
    assert [one and one.estimate for one in differences] == pytest.approx(expected)


def test_only_what_the_run_repeats_is_marked():
    def marked(**changes):
        return [(one.row.key, one.when) for one in compare(summary(**changes)).rows if one.is_counterpart]

    grpo, reproduced = ("cvbench/grpo", "after"), ("cvbench/reproduced_grpo", "after")
    assert marked() == [("cvbench/base", "before"), grpo, reproduced]
    assert marked(adapter="lora") == [("cvbench/base", "before")]
    assert marked(model="models/seed0/nano-base") == []


def test_a_row_that_does_not_add_up_widens_theunpaired_difference():
    difference = of(compare(summary()), "cvbench/base").difference
    assert difference is not None
    run = wilson(1643, 2638)
    # As if the row were right about the 828, and as if about the 768.
    assert difference.high > run.estimate - 768 / 2638 > difference.estimate


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run.update(num_items=200), "the run was asked 200 items, the published models 2,638"),
        (
            lambda run: run["by_category"]["Depth"]["after"].update(num_items=599),
            "the run was asked 599 items of category Depth, the published models 600",
        ),
        (lambda run: run.update(num_missing=1), "the run has no response to 1 of the items"),
        (lambda run: run["by_category"].pop("Count"), "the run was asked 0 items of category Count"),
        (lambda run: run["scorers"].pop("reference"), "was not scored by the paper's rule, `reference`"),
        (lambda run: run["scorers"]["reference"].update(after={"accuracy": None}), "was not scored by the paper's"),
    ],
)
def test_what_is_not_alike_is_not_subtracted(change, reason):
    run = deepcopy(summary())
    change(run)
    compared = compare(run)
    assert compared.reason is not None and reason in compared.reason
    assert len(compared.rows) == len(published().on("cvbench"))
    assert not any(one.difference or one.by_category for one in compared.rows)
    text = "\n".join(beside_lines(run))
    assert f"No difference, because {compared.reason}" in text and "+" not in text.replace(" + ", "")


def test_nothing_stands_beside_a_benchmark_without_rows():
    assert beside(summary(benchmark="spatial")) is None and beside({}) is None
    assert beside_lines(summary(benchmark="spatial")) == []


class TestLines:
    def cells(self, lines, start):
        (line,) = [line for line in lines if line.startswith(f"{start}  ")]
        return [cell.strip() for cell in line[len(start) :].split("  ") if cell.strip()]

    def test_a_run_and_its_counterparts_read_line_by_line(self):
        lines = beside_lines(summary())
        assert self.cells(lines, "  this run after, reference") == ["62.28 [60.4, 64.1]"]
        assert self.cells(lines, "> base + GRPO")[:2] == ["59.47 [57.6, 61.3]", "+2.8 [0.2, 5.4]"]
        assert self.cells(lines, "> base")[1] == "-2.2 [-4.7, 2.2] before"
        assert self.cells(lines, "  base + GPG (follow-up)")[0] == "76.15 [74.5, 77.7]"
        assert sum(line.startswith("    Depth") for line in lines) == 2

    def test_a_mark_is_explained_where_there_is_one(self):
        assert beside_lines(summary())[0] == "Published on CV-Bench, in %; > is what this run repeats"
        assert beside_lines(summary(model="models/seed0/nano-base"))[0] == "Published on CV-Bench, in %"

    def test_they_fit_a_terminal(self):
        assert max(map(len, beside_lines(summary()))) <= 100

    def test_another_wording_is_said(self):
        assert any("asked in the clean wording" in line for line in beside_lines(summary(prompt="clean")))
        assert not any("wording" in line for line in beside_lines(summary(prompt="paper")))

    def test_a_run_without_training_has_no_before_and_no_after(self):
        run = summary(method="eval")
        for values in run["scorers"].values():
            values.pop("before")
        lines = beside_lines(run)
        assert self.cells(lines, "  this run, reference") == ["62.28 [60.4, 64.1]"]
        assert self.cells(lines, "> base")[1].startswith("+30.9") and not any("before" in line for line in lines)


def test_a_scored_run_ends_with_the_published_rows():
    # Any rule may stand under the name; the paper's own would take seconds over so many responses.
    rollouts = [
        Rollout(
            example=Example(
                id=f"{category}/{index}",
                images=(),
                question="Which? (A) left (B) right",
                choices=("left", "right"),
                solution="A",
                category=category,
            ),
            completion=f"</think> <answer>{'A' if index < AFTER[category] else 'B'}</answer>",
            num_tokens=8,
            is_truncated=False,
            prompt_opens_think=True,
        )
        for category, size in ITEMS.items()
        for index in range(size)
    ]
    report = Report(
        benchmark="cvbench",
        rollouts=tuple(rollouts),
        reflection=Reflection(phrases=("wait",)),
        scorers={"strict": Strict(), "reference": Strict()},
    )
    run = summarise(None, report.summary(), name="scored", **RECIPE)
    text = run_table(run)
    assert text.endswith("\n".join(["", *beside_lines(run)])) and "> base + GRPO " in text
    difference = of(compare(run), "cvbench/grpo").difference
    assert difference is not None and difference.estimate == pytest.approx((1643 - 1569) / 2638)
    assert "Published" not in run_table({**run, "benchmark": "spatial"})
