"""The interval alone decides, and what cannot be compared is not."""

from __future__ import annotations

import math
import random

import pytest
import yaml

from tests.studies.conftest import STUDY, write_run
from visual_r1.files import read_json, write_json, write_jsonl
from visual_r1.provenance import GENERATED
from visual_r1.run_folder import RunFolder
from visual_r1.statistics import Interval, difference_over_seeds
from visual_r1.studies import page
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import load
from visual_r1.studies.verdict import judge, verdict_of

LENGTH = {"says": "it lengthens", "measure": "probe/length", "of": "practised", "minus": "practised before", "above": 0}


def rights(share, seed, count=200):
    draw = random.Random(seed)
    return [draw.random() < share for _ in range(count)]


@pytest.fixture
def runs(tmp_path):
    """Practice goes from a third to nine tenths; teaching ends at four fifths."""
    found = {}
    for seed in (0, 1, 2):
        for cell, after in (("practised", 0.9), ("taught", 0.8)):
            folder = found[cell, seed] = RunFolder(tmp_path / "runs" / cell / f"seed{seed}")
            curve = [None, 20.0 + seed, 25.0, 31.0 + 2 * seed, None]
            write_run(folder, before=rights(0.33, 0), after=rights(after, f"{cell}{seed}"), curve=curve)
    return found


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "expected"),
    [
        (0.11, 0.3, 0.1, math.inf, "holds"),
        (0.10, 0.3, 0.1, math.inf, "not resolved"),  # an end on the bound is not beyond it
        (-0.2, 0.1, 0.1, math.inf, "does not hold"),
        (-0.01, 0.02, -0.05, 0.05, "holds"),
        (-0.01, 0.06, -0.05, 0.05, "not resolved"),
        (0.05, 0.06, -0.05, 0.05, "does not hold"),
        (-math.inf, math.inf, 0.0, math.inf, "not resolved"),
    ],
)
def test_the_interval_decides(low, high, above, below, expected):
    assert verdict_of(Interval(0.0, low, high), above=above, below=below) == expected


def test_a_claim_is_judged_by_items_and_seeds(write_study, runs):
    judgement = judge(load(write_study(conditions=[*STUDY["conditions"], LENGTH])), runs)
    rise, beats, longer = judgement.findings
    before, practised, taught = (
        [[float(one) for one in rights(share, key)] for key in keys]
        for share, keys in (
            (0.33, [0, 0, 0]),
            (0.9, [f"practised{seed}" for seed in range(3)]),
            (0.8, [f"taught{seed}" for seed in range(3)]),
        )
    )
    # Items come in another order, which changes nothing but the last digits.
    for found, expected in (
        (rise, difference_over_seeds(practised, before, paired=True)),
        (beats, difference_over_seeds(practised, taught)),
    ):
        assert found.interval.estimate == pytest.approx(expected.estimate)
        assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
        assert found.num_items == 200
    assert rise.verdict == "holds" and rise.interval.low > 0.4
    # A curve's first and last values, one number a seed: the t-interval of 11, 12 and 13.
    assert longer.by_seed == (11.0, 12.0, 13.0) and longer.num_items is None
    assert longer.interval.low == pytest.approx(12 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert judgement.minutes == pytest.approx(12) and list(judgement.commits) == ["a" * 40]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "not resolved"), "not resolved"),
        (("not resolved", "does not hold"), "does not hold"),
    ],
)
def test_every_condition_must_hold(write_study, runs, verdicts, expected):
    judgement = judge(load(write_study()), runs)
    for finding, verdict in zip(judgement.findings, verdicts, strict=True):
        object.__setattr__(finding, "verdict", verdict)
    assert judgement.verdict == expected


def test_one_seed_decides_nothing_about_a_curve(write_study, runs):
    judgement = judge(load(write_study(seeds=[0], conditions=[LENGTH, *STUDY["conditions"]])), runs)
    assert judgement.findings[0].verdict == "not resolved" == judgement.verdict
    assert "no interval from one seed" in page.readme(judgement, command="x", behind="seed=K")


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("benchmark/accuracy", 0.9),
        ("benchmark/readable", 0.9),
        ("benchmark/reflection", 0.9),
        ("benchmark/truncated", 0.1),
        ("benchmark/blank_accuracy", 0.0),
        ("benchmark/length", 28.0),
    ],
)
def test_each_measure_is_read_from_its_column(write_study, runs, measure, expected):
    condition = {"says": "x", "measure": measure, "of": "practised", "above": -1}
    study = load(write_study(cells={"practised": STUDY["cells"]["practised"]}, conditions=[condition]))
    [finding] = judge(study, runs).findings
    assert finding.interval.estimate == pytest.approx(expected, rel=0.05, abs=0.03)


def test_an_unfinished_run_is_named(write_study, runs):
    runs["taught", 1].summary.unlink()
    with pytest.raises(StudyError, match="practice: taught seed 1 is not finished: `make study NAME=practice`"):
        judge(load(write_study()), runs)


def test_runs_that_were_asked_other_items_are_not_compared(write_study, runs, tmp_path):
    other = RunFolder(tmp_path / "runs" / "other" / "seed2")
    ids = [f"another {number}" for number in range(200)]
    write_run(other, before=rights(0.3, 0), after=rights(0.9, 1), ids=ids)
    with pytest.raises(StudyError, match="other/seed2: it was asked other items than .*practised/seed0"):
        judge(load(write_study()), {**runs, ("practised", 2): other})


def test_a_curve_that_is_not_there_is_named(write_study, runs):
    condition = {**LENGTH, "measure": "probe/fun"}
    with pytest.raises(StudyError, match=r"practised/seed0: it has no curve probe/fun; see the names in metrics.jsonl"):
        judge(load(write_study(conditions=[*STUDY["conditions"], condition])), runs)


def test_runs_of_two_code_versions_are_said_to_be(write_study, runs, tmp_path):
    other = RunFolder(tmp_path / "runs" / "later" / "seed2")
    write_run(other, before=rights(0.33, 0), after=rights(0.9, 1), commit="b" * 40)
    folder = write_study()
    judgement = judge(load(folder), {**runs, ("practised", 2): other})
    page.write(judgement, folder, command="make study NAME=practice", behind="seed=K")
    assert read_json(folder / page.RESULTS)["commit"] is None
    text = (folder / page.README).read_text()
    assert "**The runs are of 2 code versions**" in text and "bbbbbbbbbb made practised/2" in text


def test_the_record_has_what_others_read(write_study, runs):
    folder = write_study()
    judgement = judge(load(folder), runs)
    page.write(judgement, folder, command="make study NAME=practice", behind="seed=K")
    record = read_json(folder / page.RESULTS)
    assert {"claim", "paper", "estimate", "interval", "seeds", "items", "verdict", "command", "minutes", "commit"} <= (
        record.keys()
    )
    assert record["interval"] == [judgement.findings[0].interval.low, judgement.findings[0].interval.high]
    assert (record["items"], record["commit"], record["minutes"]) == (200, "a" * 40, 12.0)
    assert page.shown_record(record["conditions"][0]) == page.shown(judgement.findings[0])
    assert page.shown(judgement.findings[0]).startswith("+62.5 points [+54.")
    assert (folder / page.FIGURE).read_text().count("it rises by ten points: holds") == 1
    # What is written is what does not count as a change of the code.
    names = {path.name for path in folder.iterdir()} - {"study.yaml"}
    assert {f"experiments/*/{name}" for name in (*names, page.CURVE)} | {f"experiments/{page.README}"} == {*GENERATED}


def practised(**entries):
    """A study's cells and the one condition on them."""
    condition = {"says": "x", "of": "practised", "above": -9, **entries}
    cells = {cell: STUDY["cells"][cell] for cell in ("practised", "taught") if cell in str(condition.values())}
    return {"cells": cells, "conditions": [condition]}


def test_another_measure_of_the_same_runs_is_subtracted(write_study, runs):
    asked = practised(measure="benchmark/accuracy", minus="practised", minus_measure="benchmark/truncated")
    [finding] = judge(load(write_study(**asked)), runs).findings
    assert finding.interval.estimate == pytest.approx(0.9 - 0.1, abs=0.05) and finding.num_items == 200


def test_an_answer_that_cannot_be_read_is_a_guess(write_study, tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, before=[True] * 4, after=[True, False, False, False], readable=[True, True, False, False])
    asked = practised(measure="benchmark/accuracy_with_guesses")
    [finding] = judge(load(write_study(seeds=[0], **asked)), {("practised", 0): folder}).findings
    assert finding.interval.estimate == pytest.approx((1 + 0 + 1 / 4 + 1 / 4) / 4)


def test_several_values_of_a_curve_are_averaged(write_study, runs):
    # By seed the curve is 20, 25, 31; 21, 25, 33; 22, 25, 35.
    asked = practised(measure="probe/length", minus="practised before", over=2)
    [finding] = judge(load(write_study(**asked)), runs).findings
    assert finding.by_seed == pytest.approx([(31 - 20) / 2, (33 - 21) / 2, (35 - 22) / 2])


def test_the_best_is_chosen_by_its_curve_and_stands_for_itself(write_study, tmp_path):
    found = {}
    for cell, length, share in (("practised", 1.0, 0.9), ("taught", 2.0, 0.3)):
        for seed in (0, 1, 2):
            folder = found[cell, seed] = RunFolder(tmp_path / cell / str(seed))
            # The last value decides: each seed's, on average.
            write_run(folder, before=rights(0.5, 1), after=rights(share, seed), curve=[9.0 - length, length + seed])
    best = {"best": {"of": ["practised", "taught"], "by": "probe/length"}}
    conditions = [{"says": "x", "measure": "benchmark/accuracy", "of": "best", "above": 0}]
    judgement = judge(load(write_study(chosen=best, conditions=conditions)), found)
    assert judgement.chosen == {"best": "taught"}
    assert judgement.findings[0].interval.estimate == pytest.approx(0.3, abs=0.05)
    assert "`best` is `taught`, the highest of `practised`, `taught` by `probe/length`." in page.readme(
        judgement, command="x", behind="seed=K"
    )


@pytest.mark.parametrize(("below", "expected"), [(0.99, "holds"), (0.8, "not resolved"), (0.9, "not resolved")])
def test_without_what_is_given_nothing_is_decided(write_study, runs, below, expected):
    given = [{"says": "there is room", "measure": "benchmark/accuracy", "of": "practised", "below": below}]
    judgement = judge(
        load(
            write_study(
                given=given,
                conditions=practised(measure="probe/length")["conditions"],
                cells={"practised": "method=grpo"},
            )
        ),
        runs,
    )
    assert judgement.verdict == expected
    shown = page.readme(judgement, command="x", behind="seed=K")
    assert "| it can be decided only if |" in shown and "| there is room |" in shown
    assert page.record(judgement, command="x")["given"][0]["below"] == below


def write_rollouts(folder, steps, *, prompts=None, accuracy):
    """A run of so many steps of 2 prompts x 4 rollouts, with the accuracy of the probe after each."""
    write_run(folder, before=[True] * 2, after=[True] * 2)
    config = {
        "scale": {"probe_size": 64},
        "method": {"name": "grpo", "prompts_per_step": 2, "trl": {"num_generations": 4}},
    }
    folder.config.write_text(yaml.safe_dump(config))
    rows = [{"step": 0, "probe/accuracy": 0.0}]
    for step in range(1, steps + 1):
        rows.append({"step": step, "probe/accuracy": accuracy(step)})
        if prompts:
            rows[-1]["groups/num_prompts"] = prompts
    write_jsonl(folder.metrics, rows)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (None, 0.04 - 0.40),  # four steps of each
        (4.0, 0.02 - 0.40),  # two of its steps have had as many rollouts as four of the other's
        (100.0, 0.0 - 0.40),  # its first step had more already: it stands where it began
    ],
)
def test_two_recipes_are_read_after_as_many_rollouts(write_study, tmp_path, prompts, expected):
    found = {}
    for seed in (0, 1):
        found["practised", seed] = RunFolder(tmp_path / f"practised{seed}")
        write_rollouts(found["practised", seed], 8, prompts=prompts, accuracy=lambda step: step / 100)
        found["taught", seed] = RunFolder(tmp_path / f"taught{seed}")
        write_rollouts(found["taught", seed], 4, accuracy=lambda step: step / 10)
    asked = practised(measure="probe/accuracy", minus="taught", at_equal_rollouts=True)
    [finding] = judge(load(write_study(seeds=[0, 1], **asked)), found).findings
    assert finding.by_seed == pytest.approx([expected, expected])


def test_what_samples_nothing_has_no_equal_rollouts(write_study, tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, before=[True] * 2, after=[True] * 2, curve=[1.0])
    folder.config.write_text("method: {name: sft}")
    asked = practised(measure="probe/length", minus="practised before", at_equal_rollouts=True)
    with pytest.raises(StudyError, match="method=sft samples no rollouts"):
        judge(load(write_study(seeds=[0], **asked)), {("practised", 0): folder})


def test_runs_that_start_from_one_model_each_are_paired_by_seed(write_study, tmp_path):
    asked = practised(measure="benchmark/accuracy", minus="taught")
    widths = []
    for own in (True, False):
        found = {}
        for seed, share in ((0, 0.3), (1, 0.5), (2, 0.7)):
            for cell, gain in (("practised", 0.2), ("taught", 0.0)):
                folder = found[cell, seed] = RunFolder(tmp_path / f"{own}" / cell / str(seed))
                after = [number < 200 * (share + gain) for number in range(200)]
                write_run(folder, before=after, after=after, model=f"nano{seed if own else ''}")
        [finding] = judge(load(write_study(**asked)), found).findings
        assert finding.interval.estimate == pytest.approx(0.2)
        widths.append(finding.interval.high - finding.interval.low)
    assert widths[0] < widths[1] / 2


def test_a_probe_is_read_by_section_measure_and_condition(write_study, tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, before=[True] * 2, after=[True] * 2)
    row = {"measure": "accuracy", "condition": "put in, at its end", "against": None, "source": "probe"}
    rows = [{**row, "model": "before", "estimate": 0.25}, {**row, "model": "after", "estimate": None}]
    rows.insert(0, {**row, "against": "another", "model": "before", "estimate": 0.9})
    write_json(folder.reflection, {"sections": [{"name": "forced", "rows": rows}]})
    measure = "probed/forced/accuracy/put in, at its end"
    asked = practised(measure=measure, of="practised before")
    study = load(write_study(seeds=[0], probe={"of": ["practised"], "asks": "--examples 4"}, **asked))
    assert judge(study, {("practised", 0): folder}).findings[0].interval.estimate == 0.25
    after = load(write_study(seeds=[0], probe={"of": ["practised"], "asks": "-"}, **practised(measure=measure)))
    with pytest.raises(StudyError, match="it has no probed/forced/accuracy/put in, at its end of the model after"):
        judge(after, {("practised", 0): folder})


def test_builds_of_another_version_are_said_to_be(write_study, runs, tmp_path):
    build = tmp_path / "builds" / "trunk" / "seed0" / "build.json"
    build.parent.mkdir(parents=True)
    write_json(build, {"commit": "b" * 40, "is_dirty": False, "wall_seconds": 600.0})
    judgement = judge(load(write_study()), runs, [build])
    assert judgement.commits["b" * 40] == ("build:trunk/0",)
    assert judgement.minutes == pytest.approx(6 * 2 + 10)
    assert "**The runs are of 2 code versions**" in page.readme(judgement, command="x", behind="seed=K")


def changed_since(sha, commit="a" * 40):
    return {"commit": commit, "is_dirty": sha is not None, "diff_sha256": sha}


def test_a_run_of_changed_code_or_gone_on_with_other_code_is_another_version(write_study, runs):
    codes = {
        ("practised", 0): [changed_since("1" * 64)],
        ("practised", 1): [changed_since("2" * 64)],
        ("practised", 2): [changed_since(None), changed_since(None, "b" * 40), changed_since(None, "b" * 40)],
    }
    for key, (first, *resumes) in codes.items():
        write_json(runs[key].provenance, {"code": first, "resumes": [{"code": code} for code in resumes]})
    judgement = judge(load(write_study()), runs)
    assert judgement.commits == {
        f"{'a' * 40} with changes 11111111": ("practised/0",),
        "a" * 40: ("taught/0", "taught/1", "taught/2"),
        f"{'a' * 40} with changes 22222222": ("practised/1",),
        f"{'a' * 40}, then {'b' * 40}": ("practised/2",),
    }
    text = page.readme(judgement, command="x", behind="seed=K")
    assert "**The runs are of 4 code versions**" in text and "aaaaaaaaaa with changes 11111111 made practised/0" in text
    assert "aaaaaaaaaa, then bbbbbbbbbb made practised/2" in text


@pytest.mark.parametrize("name", ["summary.json", "evaluation.parquet", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"{{", None])
def test_a_damaged_run_is_named(write_study, runs, name, content):
    file = runs["practised", 1].path / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StudyError, match="practised[/ ]seed ?1") as error:
        judge(load(write_study(conditions=[*STUDY["conditions"], LENGTH])), runs)
    assert "\n" not in str(error.value)


def write_rates(tmp_path, values, prompts=128):
    """A run of each seed and cell whose probe ended at one rate."""
    found = {}
    for cell, rate in values.items():
        for seed in (0, 1, 2):
            folder = found[cell, seed] = RunFolder(tmp_path / cell / str(seed))
            write_run(folder, before=[True] * 2, after=[True] * 2)
            folder.config.write_text(yaml.safe_dump({"scale": {"probe_size": prompts}}))
            rows = [{"step": 0, "probe/a_rate": 0.0}, {"step": 1, "probe/a_rate": rate, "probe/length": 3.0}]
            write_jsonl(folder.metrics, rows)
    return found


def test_a_rate_that_is_the_same_for_all_seeds_is_not_certain(write_study, tmp_path):
    found = write_rates(tmp_path, {"practised": 0.0, "taught": 0.5})
    [finding] = judge(load(write_study(**practised(measure="probe/a_rate", above=-1))), found).findings
    # Wilson's: z^2 / (n + z^2) of 128 prompts.
    assert (finding.interval.low, finding.interval.high) == (0.0, pytest.approx(3.8415 / 131.8415, abs=1e-4))
    [finding] = judge(load(write_study(**practised(measure="probe/a_rate", minus="taught", above=-1))), found).findings
    z2 = 3.8415
    reach = math.sqrt(z2 * 0.25 / 128 + z2**2 / (4 * 128**2)) / (1 + z2 / 128)
    assert finding.interval.estimate == -0.5 and finding.interval.low == pytest.approx(-0.5 - reach, abs=1e-4)
    assert finding.interval.high == pytest.approx(-0.5 + math.hypot(reach, z2 / (128 + z2)), abs=1e-4)


def test_what_is_the_same_for_all_seeds_and_no_rate_decides_nothing(write_study, tmp_path):
    found = write_rates(tmp_path, {"practised": 0.0})
    judgement = judge(load(write_study(**practised(measure="probe/length", above=1))), found)
    assert judgement.verdict == "not resolved"
    assert "no interval for all seeds give the same" in page.readme(judgement, command="x", behind="seed=K")


def test_no_interval_of_a_share_reaches_farther_than_a_share_can(write_study, tmp_path):
    found = write_rates(tmp_path, {"practised": 0.5, "taught": 0.0})
    for seed, rate in enumerate((0.1, 0.9, 0.9)):
        rows = [{"step": 1, "probe/a_rate": rate, "probe/length": 100 * rate}]
        write_jsonl(found["practised", seed].metrics, rows)
    [finding] = judge(load(write_study(**practised(measure="probe/a_rate", above=-1))), found).findings
    # t's of these three would reach from -0.51 to 1.78.
    assert (finding.interval.low, finding.interval.high) == (0.0, 1.0)
    [finding] = judge(load(write_study(**practised(measure="probe/a_rate", minus="taught", above=0))), found).findings
    assert (finding.interval.low, finding.interval.high) == (pytest.approx(-0.514, abs=1e-3), 1.0)
    assert finding.verdict == "not resolved"
    [finding] = judge(load(write_study(**practised(measure="probe/length", above=0))), found).findings
    assert finding.interval.high == pytest.approx(178.1, abs=0.1)
