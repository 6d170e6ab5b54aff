"""Finished runs as a study reads them, with numbers that are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from visual_r1.files import write_json, write_jsonl, write_parquet
from visual_r1.run_folder import RunFolder

STUDY: dict[str, Any] = {
    "claim": "Practice makes perfect.",
    "paper": {"says": "up by 28 points", "source": "Table 2"},
    "cannot_say": "Anything else.",
    "seeds": [0, 1, 2],
    "cells": {"practised": "model=base method=grpo", "taught": "model=base method=sft"},
    "conditions": [
        {
            "says": "it rises by ten points",
            "measure": "benchmark/accuracy",
            "of": "practised",
            "minus": "practised before",
            "above": 0.1,
        },
        {
            "says": "it beats teaching",
            "measure": "benchmark/accuracy",
            "of": "practised",
            "minus": "taught",
            "above": 0,
        },
    ],
}


@pytest.fixture
def write_study(tmp_path) -> Callable[..., Path]:
    """Writes a study, with other entries where they are given; None leaves one out."""

    def write(name: str = "practice", **changed: Any) -> Path:
        folder = tmp_path / "experiments" / name
        folder.mkdir(parents=True, exist_ok=True)
        content = {key: value for key, value in {**STUDY, **changed}.items() if value is not None}
        (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return folder

    return write


def write_run(
    folder: RunFolder,
    *,
    before: Sequence[bool],
    after: Sequence[bool],
    curve: Sequence[float | None] = (),
    commit: str = "a" * 40,
    ids: Sequence[str] | None = None,
    readable: Sequence[bool] | None = None,
    model: str | None = None,
) -> None:
    """A finished run that was right on these items, and whose curve ``probe/length`` had these values.

    An answer can be read where it is right, or where ``readable`` says so; each item has four choices.
    """
    folder.path.mkdir(parents=True)
    names = ids or [f"item {number}" for number in range(len(after))]
    write_parquet(
        folder.evaluation_items,
        [
            {
                "when": when,
                "example_id": name,
                "correct": is_right,
                "blank_correct": False,
                "choices": ["1", "2", "3", "4"],
                "choice": "A" if can_be_read else None,
                "is_truncated": not is_right,
                "reflection": ["wait"] if is_right else [],
                "num_tokens": 10 + 20 * is_right,
            }
            for when, verdicts in (("before", before), ("after", after))
            for name, is_right, can_be_read in zip(names, verdicts, readable or verdicts, strict=True)
        ],
    )
    rows = [{"step": step, **({} if value is None else {"probe/length": value})} for step, value in enumerate(curve)]
    write_jsonl(folder.metrics, rows)
    write_json(folder.summary, {"commit": commit, "is_dirty": False, "wall_seconds": 120.0, "model": model})
