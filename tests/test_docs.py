"""docs/extending.md is followed to the letter: its files are written as they stand and its commands run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()

FILES = re.findall(r"^`([\w./-]+)`\n\n```(?:python|yaml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
# What keeps a documented command short enough for a test; the command itself is run as it is written.
SMALL = [
    *("scale.prompts_per_step=2", "scale.micro_batch_size=8", "scale.max_completion_length=24", "scale.probe_size=4"),
    *("scale.benchmark_size=4", "tracker=none"),
]
CURVES = {
    "with_doubt": {"rewards/doubt/mean", "probe/rewards/doubt/mean"},
    "with_brevity": {"rewards/brevity/mean"},
    "with_vocabulary": {"vocabulary/num_words", "probe/vocabulary/num_words"},
}
"""What the page says will appear, by the name of the run."""


def test_the_page_holds_files_and_commands():
    # An empty list would make the tests below pass by running nothing.
    assert {name.split("/")[1] for name, _ in FILES if name.startswith("conf/")} == {
        *("reward", "metric", "dataset", "benchmark", "model", "method")
    }
    assert len(COMMANDS) == 9
    assert all(any(f"name={run}" in command for command in COMMANDS) for run in CURVES)
    assert all(command.split()[0] in ("python", "visual-r1") for command in COMMANDS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository with the page's files in it."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("visual_r1", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    (folder / "models").symlink_to(ROOT / "models")
    for name, text in FILES:
        assert not (folder / name).exists(), f"{name} would overwrite a file of the project"
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_does_what_it_says(copy, command):
    program, *arguments = command.split()
    if program == "python":
        start = [sys.executable, *arguments, *(one for one in SMALL if one.split("=")[0] not in command)]
    else:
        start = [sys.executable, "-m", "visual_r1.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(start, cwd=copy, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if program == "python":
        assert "accuracy" in done.stdout
    for run, names in CURVES.items():
        if f"name={run}" in arguments:
            lines = (copy / "runs" / run / "seed0" / "metrics.jsonl").read_text().splitlines()
            assert names <= {name for line in lines for name in json.loads(line)}
