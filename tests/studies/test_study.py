"""Reading a study: what is wrong is named with its place and what to write."""

from __future__ import annotations

import math
import re

import pytest

from tests.studies.conftest import STUDY
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import Side, load

FIRST, SECOND = STUDY["conditions"]


def test_a_study_is_read(write_study):
    study = load(write_study())
    assert (study.name, study.claim, study.seeds) == ("practice", "Practice makes perfect.", (0, 1, 2))
    assert study.cells == {"practised": ("model=base", "method=grpo"), "taught": ("model=base", "method=sft")}
    first, second = study.conditions
    assert (first.of, first.minus) == (Side(cell="practised"), Side(cell="practised", when="before"))
    assert (first.above, first.below, str(first.minus)) == (0.1, math.inf, "practised before")
    assert second.cells == ("practised", "taught")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"claim": None}, "claim is None, expected words"),
        ({"verdict": "holds"}, "verdict is unknown"),
        ({"paper": {"says": "x"}}, "paper.source is None"),
        ({"paper": "up"}, "paper is 'up', expected names"),
        ({"seeds": []}, "seeds is [], expected a list"),
        ({"seeds": [0, 0]}, "one stands there twice"),
        ({"seeds": [True]}, "expected numbers from 0"),
        ({"cells": {"practised": "base"}}, "cells.practised is 'base', expected what is typed behind run.py"),
        ({"cells": {"practised": "seed=3"}}, "cells.practised: seed=3: the study itself says this"),
        ({"conditions": [FIRST]}, "cells ['taught']: no condition looks at them"),
        ({"conditions": [FIRST, {**SECOND, "of": "talked"}]}, "conditions[1].of=talked: there is no such cell"),
        ({"conditions": [FIRST, {**SECOND, "minus": "taught after"}]}, "conditions[1].minus: 'after' is unknown"),
        ({"conditions": [FIRST, {**SECOND, "above": None}]}, "conditions[1].above is None, expected a number"),
        ({"conditions": [FIRST, {**SECOND, "below": -1}]}, "conditions[1]: give above, below, or both, the lower"),
        ({"conditions": [FIRST, {**SECOND, "measure": "benchmark/fun"}]}, "conditions[1].measure=benchmark/fun is unk"),
        ({"conditions": [FIRST, "more"]}, "conditions[1] is 'more', expected entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_named(write_study, changed, said):
    folder = write_study(**changed)
    with pytest.raises(StudyError, match=re.escape(said)) as raised:
        load(folder)
    assert str(raised.value).startswith(str(folder / "study.yaml"))


def test_a_condition_without_bounds_is_refused(write_study):
    bare = {key: value for key, value in SECOND.items() if key != "above"}
    with pytest.raises(StudyError, match=r"conditions\[1\]: give above, below, or both"):
        load(write_study(conditions=[FIRST, bare]))


@pytest.mark.parametrize("content", ["claim: [", "\xff"])
def test_what_is_no_yaml_is_named(tmp_path, content):
    (tmp_path / "study.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(StudyError, match=re.escape(str(tmp_path / "study.yaml"))):
        load(tmp_path)


def test_a_study_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StudyError, match="there is no such study"):
        load(tmp_path / "nothing")


BUILDS = {
    "trunk": "organism trunk {folder} --seed {seed}",
    "base": "organism build {folder} --seed {seed} --trunk {trunk}",
}
DOSED = {
    "cells": {f"dose-{dose}": f"model={{base}} scale.top_k={dose}" for dose in (0, 1, 2)},
    "conditions": [{"says": "x", "measure": "probe/accuracy", "of": "dose-0", "above": 0}],
}
DOSE = {
    "measure": "probe/accuracy",
    "doses": {"dose-0": 0, "dose-1": 1, "dose-2": 2},
    "falls_to": 0.5,
    "label": "how much",
}


def test_a_cell_may_differ_by_scale(write_study):
    cells = {"practised": {"laptop": "scale.top_k=1", "paper": "scale.top_k=2"}, "taught": "method=sft"}
    folder = write_study(cells=cells)
    assert load(folder).cells == {"practised": ("scale.top_k=1",), "taught": ("method=sft",)}
    assert load(folder, scale="paper").cells["practised"] == ("scale.top_k=2",)
    with pytest.raises(StudyError, match=r"cells.practised says nothing of scale=gpu, only of \['laptop', 'paper'\]"):
        load(folder, scale="gpu")


def test_a_study_may_build_probe_and_have_a_curve(write_study):
    study = load(write_study(builds=BUILDS, probe={"of": ["dose-0"], "asks": "--examples 4"}, dose=DOSE, **DOSED))
    assert study.builds["base"][-1] == "{trunk}" and study.probe == ("--examples", "4")
    assert study.probed == ("dose-0",)
    assert study.dose is not None and list(study.dose.doses.values()) == [0, 1, 2] and study.dose.beside == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"builds": {"base": "organism build {folder}"}}, "builds.base is 'organism build {folder}', expected"),
        (
            {"builds": {"base": "x {folder} {seed} {trunk}"}},
            "builds.base: {trunk} is unknown, expected folder, seed or",
        ),
        (
            {"builds": {**BUILDS, "other": "x {folder} {seed}"}, "cells": {"practised": "model={no}"}},
            "{no} is no build",
        ),
        ({"chosen": {"best": {"of": ["gone"], "by": "probe/accuracy"}}}, "chosen.best.of: there is no cell gone"),
        ({"chosen": {"best": {"of": ["taught"], "by": "benchmark/accuracy"}}}, "expected a curve of the probe"),
        (
            {"chosen": {"best": {"of": ["taught"], "by": "probe/accuracy"}}},
            "cells ['best']: no condition looks at them",
        ),
        ({"given": [{**FIRST, "of": "gone"}]}, "given[0].of=gone: there is no such cell"),
        ({"conditions": [{**FIRST, "over": 0}, SECOND]}, "conditions[0].over is 0, expected a number of values"),
        ({"conditions": [{**FIRST, "over": 2}, SECOND]}, "over and at_equal_rollouts (true) are for curves"),
        ({"conditions": [{**FIRST, "minus_measure": "benchmark/length"}, SECOND]}, "cannot be subtracted from"),
        (
            {"conditions": [{"says": "x", "measure": "a", "of": "taught", "minus_measure": "b", "above": 0}]},
            "at_equal_rollouts and minus_measure need minus",
        ),
        ({"conditions": [{**SECOND, "measure": "probed/forced"}]}, "expected probed/SECTION/MEASURE/CONDITION"),
        ({"conditions": [{**SECOND, "measure": "probed/forced/accuracy/x"}, FIRST]}, "but there is no entry probe"),
        (
            {
                "conditions": [{**SECOND, "measure": "probed/forced/accuracy/x"}, FIRST],
                "probe": {"of": ["taught"], "asks": "-"},
            },
            "a measure is probed/... of practised, which probe.of does not name",
        ),
        ({"probe": {"of": ["gone"], "asks": "-"}}, "probe.of: there is no cell gone"),
        ({"builds": {"seed": "x {folder} {seed}"}}, "builds.seed: {seed} stands for something else already"),
        ({"cells": {**STUDY["cells"], "builds": "method=sft"}}, "cells.builds: its runs lie in a folder of this name"),
        ({"cells": {**STUDY["cells"], "a/b": "method=sft"}}, "cells.a/b: its runs lie in a folder of this name"),
        (
            {"chosen": {"taught": {"of": ["practised"], "by": "probe/accuracy"}}},
            "chosen.taught: a cell has this name already",
        ),
        ({"dose": {**DOSE, "doses": {"practised": 0, "taught": 1}}}, "dose.doses: expected three doses or more"),
        ({"dose": {**DOSE, "doses": {"practised": 0, "gone": 1}}}, "dose: there is no cell gone"),
        ({"cells": {**STUDY["cells"], "practised": "scale=paper"}}, "scale=paper: the study itself says this"),
    ],
)
def test_what_is_wrong_with_the_rest_is_named(write_study, changed, said):
    with pytest.raises(StudyError) as error:
        load(write_study(**changed))
    assert said in str(error.value) and str(error.value).count("\n") == 0


def test_curves_alone_are_averaged_and_read_at_equal_rollouts(write_study):
    [condition] = load(
        write_study(
            cells={"practised": "method=grpo"},
            conditions=[
                {
                    "says": "x",
                    "measure": "probe/a",
                    "of": "practised",
                    "minus": "practised before",
                    "minus_measure": "probe/b",
                    "over": 3,
                    "at_equal_rollouts": True,
                    "above": 0,
                }
            ],
        )
    ).conditions
    assert (condition.minus_measure, condition.over, condition.at_equal_rollouts) == ("probe/b", 3, True)
