"""Tables on a hub: only what is needed is fetched, what was fetched is kept, a failure is one line with the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of each attempt of `tests/datasets/hub.py`, which runs a hub and opens tables on it."""
    command = [sys.executable, "-m", "tests.datasets.hub", str(tmp_path_factory.mktemp("hub"))]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_only_the_files_of_a_split_are_fetched(outcomes):
    assert outcomes["sat"] == {"rows": 8, "sent": ["SAT_val.parquet"]}
    assert outcomes["cvbench"] == {"rows": 8, "sent": ["README.md", "test_2d.parquet", "test_3d.parquet"]}
    assert outcomes["lines"] == {"rows": 2, "sent": ["train.jsonl"]}


def test_nothing_is_fetched_twice(outcomes):
    assert outcomes["sat again"] == {"rows": 8, "sent": []}
    assert outcomes["configuration"] == {"rows": 4, "sent": []}


def test_what_was_fetched_is_read_without_the_hub(outcomes):
    assert {name: outcomes[f"offline: {name}"] for name in ("sat", "cvbench", "lines")} == {
        "sat": {"rows": 8, "sent": []},
        "cvbench": {"rows": 8, "sent": []},
        "lines": {"rows": 2, "sent": []},
    }


REFUSED = {
    "no such file": "array/SAT: the hub has no file SAT_dev.parquet there",
    "no such configuration": "nyu-visionx/CV-Bench: BuilderConfig '4D' not found. Available: ['default', '2D']",
    "no such split": "nyu-visionx/CV-Bench: no split 'train'; its splits are: test",
    "no such repository": "no/such: no such path here, and on the hub: Dataset 'no/such' doesn't exist",
    "no such repository's file": "no/such: no such path here, and no such data set on the hub that you may read",
    "gated": "mine/gated: no such path here, and on the hub: Dataset 'mine/gated' is a gated dataset",
    "gated file": "mine/gated: accept its terms on its page, then `hf auth login`",
    "offline: sat, not fetched": (
        "array/SAT: no such path here, and the hub does not answer; download it once with "
        "`hf download array/SAT SAT_train.parquet --repo-type dataset`, or set path to a folder that holds its files"
    ),
    "offline: never seen": "no/such: no such path here, and the hub does not answer; download it once with",
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_a_failure_is_one_line_with_the_fix(attempt, outcomes):
    outcome = outcomes[attempt]
    assert outcome["error"] == "ValueError" and "\n" not in outcome["message"]
    assert outcome["message"].startswith(REFUSED[attempt])
