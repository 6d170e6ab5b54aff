"""A run folder to track."""

from __future__ import annotations

import pytest

from visual_r1.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "grpo" / "seed0")
    folder.path.mkdir(parents=True)
    return folder
