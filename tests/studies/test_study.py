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
