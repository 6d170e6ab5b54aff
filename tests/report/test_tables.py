"""The report's tables: what stands beside a number that it must not be read without."""

from __future__ import annotations

import pytest

from visual_r1.report.groups import Results
from visual_r1.report.tables import accuracy_table


@pytest.mark.parametrize(("benchmark", "is_published"), [("cvbench", True), ("spatial", False)])
def test_published_rows_say_that_their_seeds_are_not_in_their_intervals(benchmark, is_published):
    result = Results(label="a", benchmark=benchmark, seeds=(0, 1), is_group=True, facts=())
    table = accuracy_table([result], title="")
    assert (len(table.rows) > 1) == ("over items alone" in table.note) == is_published
