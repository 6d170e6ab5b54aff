"""Runs of an older version, whose files hold less than today's or hold it in another shape."""

from __future__ import annotations

import pytest

from tests.finished_runs import write_run
from visual_r1.files import read_json, write_json
from visual_r1.report.across import drawn, findings
from visual_r1.report.page import as_page


@pytest.mark.parametrize("other", [None, [], "text"])
def test_a_record_in_another_shape_costs_what_was_in_it(tmp_path, other):
    run = write_run(tmp_path / "a" / "seed0")
    record = read_json(run.provenance)
    write_json(run.provenance, {**record, "code": other, "data": other, "versions": other, "command": other})
    summary = read_json(run.summary)
    write_json(run.summary, {key: value for key, value in summary.items() if key != "command"})
    found = findings([tmp_path])
    assert "a seed 0" in as_page(found, drawn(found, keyword_lists={}, examples_of=lambda node: ()))
