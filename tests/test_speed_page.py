"""docs/speed.md: its tables and its figure are what was measured."""

from __future__ import annotations

import json
import re

import pytest

from tools import speed_tables

PART = {
    "commit": "0123456789abcdef",
    "is_dirty": False,
    "hardware": {"cpu": "CPU", "num_cores": 2},
    "versions": {"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0"},
    "config": {"threads": 1},
}


def measured(case, metric, stock, ours, *, image=300, group=8, longest=200, model="28M", **more):
    shape = {"model": model, "image_tokens": image, "group": group, "longest": longest}
    ratio = round(ours / stock if "memory" in metric else stock / ours, 2)
    return {"case": case, "metric": metric, "stock": stock, "ours": ours, "ratio": ratio, "shape": shape, **more}


def updated(case, stock, ours, **more):
    sides = {"stock": {"tokens": 4800, "patches": 9600}, "ours": {"tokens": 1607, "patches": 1200}}
    tokens = {"real": {"prompt": 3200, "image": 2400, "completion": 1200}, "computed": sides}
    row = measured(case, "update", stock, ours, tokens=tokens, **more)
    return {**row, "floor": 4.0, "gflops_per_second": 70.4, "share_of_floor": {"stock": 0.1, "ours": 0.45}}


UPDATES = [
    updated("28M, bar", 40.0, 9.0),
    updated("28M, bar, all equally long", 41.0, 10.0),
    updated("28M, small", 20.0, 6.0, group=4),
    updated("28M, large image", 60.0, 12.0, image=1000, group=4),
    updated("nano", 0.9, 0.245, image=16, longest=160, model="nano"),
    measured("28M, bar", "pass without gradient", 13.0, 3.25),
    measured("28M, bar", "images, rewards, advantages", 0.1, 0.05),
    measured("28M, group from 1 to 32", "an extra completion", 4.8, 0.6),
]
PARTS = {
    "update": {**PART, "results": UPDATES},
    "memory": {
        **PART,
        "results": [
            measured("28M, bar", "peak memory of an update", 4.2e9, 1.05e9),
            measured("shared_prefix", "peak memory of a batch, made and learned from", 3.0e9, 1.5e9),
        ],
    },
    "flags": {
        **PART,
        "results": [
            measured("shared_prefix", metric, 4.0, stock)
            for metric, stock in (("making the batch", 2.0), ("update", 1.0), ("together", 1.5))
        ],
    },
    "pushes": {
        **PART,
        "results": [
            measured("freeze=vision", "push after a step", 0.02, 0.015, unit="seconds"),
            measured("freeze=vision", "weights pushed after a step", 112.6e6, 77.9e6, unit="bytes"),
        ],
    },
    "step": {
        **PART,
        "results": [
            measured("nano", "whole step", 5.0, 1.25, completion_tokens={"stock": 3400.4, "ours": 3500.0}),
            measured("nano", "whole step for a completion token", 1.5, 0.36),
        ],
    },
}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("record", "| memory | 0123456789 | CPU, 2 cores | 1 | 2.13.0, 5.17.0, 1.16.0 |"),
        ("update", "| 300 | 200 | 20.0 → 6.00, **3.3x** | 40.0 → 9.00, **4.4x** |  |"),
        ("memory", "| 300 | 200 |  | 4.20 → 1.05, **0.25** |  |"),
        (
            "cases",
            "| 28M, bar | 3,200 + 1,200 | 4,800 → 1,607 | 9,600 → 1,200 | 40.0 → 9.00, **4.4x** | "
            "13.0 → 3.25, **4.0x** | 0.100 → 0.050, **2.0x** |",
        ),
        ("growth", "| 28M, group from 1 to 32: an extra completion | 4,800.0 ms | 600.0 ms | 8.0x |"),
        ("floor", "| 28M, bar | 70 | 4.00 | 9.00 | 45 % | 10 % |"),
        (
            "flags",
            "| `shared_prefix` | 4.00 → 2.00, 2.00x | 4.00 → 1.00, 4.00x | 4.00 → 1.50, 2.67x | "
            "3.00 → 1.50, **0.50** |",
        ),
        ("pushes", "| `freeze=vision` | 0.020 → 0.015, 1.33x | 112.6 → 77.9 |"),
        ("steps", "| nano | 3,400 / 3,500 | 5.00 → 1.25, **4.0x** | 1.50 → 0.360, **4.2x** |"),
    ],
)
def test_a_table_is_read_from_the_results(name, line):
    table = speed_tables.TABLES[name](PARTS)
    assert line in table.splitlines()
    head, rule, *rows = table.splitlines()
    assert rows and {row.count("|") for row in (head, rule, *rows)} == {head.count("|")}


def test_the_case_of_equal_lengths_is_beside_the_grid_and_not_in_it():
    assert "41.0" not in speed_tables.update_table(PARTS) and "41.0" in speed_tables.cases_table(PARTS)
    assert "large image" not in speed_tables.cases_table(PARTS)


def test_a_page_gets_its_tables_between_its_marks():
    page = "Before.\n<!-- steps: written by a tool -->\nold\n<!-- /steps -->\nAfter.\n"
    written = speed_tables.with_tables(page, PARTS)
    assert written.startswith("Before.\n<!-- steps: written by a tool -->\n| case |")
    assert written.endswith("|\n<!-- /steps -->\nAfter.\n") and "old" not in written
    assert speed_tables.with_tables(written, PARTS) == written


def test_a_part_that_is_missing_is_named_where_its_table_would_stand():
    page = "<!-- flags: by a tool -->\n<!-- /flags -->\n<!-- update: by a tool -->\n<!-- /update -->\n"
    written = speed_tables.with_tables(page, {"update": PARTS["update"], "flags": PARTS["flags"]})
    assert "Not measured yet: `python -m benchmarks.step memory`.\n<!-- /flags -->" in written
    assert "| image tokens |" in written


def test_every_table_says_what_it_is_read_from():
    assert set(speed_tables.PARTS_OF) == set(speed_tables.TABLES) - {"record"}
    for name, parts in speed_tables.PARTS_OF.items():
        assert speed_tables.TABLES[name]({part: PARTS[part] for part in parts})


def test_the_figure_says_which_results_it_shows(tmp_path):
    first, again, other = (tmp_path / name for name in ("first.svg", "again.svg", "other.svg"))
    speed_tables.draw(PARTS, first)
    speed_tables.draw(PARTS, again)
    changed = {**PARTS, "update": {**PART, "results": [updated("28M, bar", 41.0, 9.0), *UPDATES[1:]]}}
    speed_tables.draw(changed, other)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert speed_tables.digest(PARTS) in first.read_text() and "completions of a prompt" in first.read_text()
    assert speed_tables.digest(PARTS) not in other.read_text()


@pytest.mark.skipif(not speed_tables.RESULTS.exists(), reason="nothing is measured yet")
def test_the_page_shows_what_was_measured():
    parts, page = json.loads(speed_tables.RESULTS.read_text())["parts"], speed_tables.PAGE.read_text()
    assert speed_tables.with_tables(page, parts) == page, "run python tools/speed_tables.py"
    assert set(re.findall(r"<!-- (\w+): ", page)) == set(speed_tables.TABLES)
    assert speed_tables.digest(parts) in speed_tables.FIGURE.read_text(), "run python tools/speed_tables.py"
    assert not [name for name, part in parts.items() if part["is_dirty"]]
