"""The GPU check on a CPU, with a narrow model of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visual_r1 import gpu_check
from visual_r1.architectures import checkpoints

SHALLOW = ("--device", "cpu", "--text-layers", "2", "--vision-depth", "2")


def make_narrow(monkeypatch: Any) -> None:
    """Two heads instead of twelve, and everything else as it is."""
    read = checkpoints.read_architecture

    def read_narrow(name: str) -> dict[str, Any]:
        description = read(name)
        config = description["files"]["config.json"]
        config |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
        config["vision_config"] |= {"embed_dim": 160, "num_heads": 2, "hidden_size": 256}
        return description

    monkeypatch.setattr(checkpoints, "read_architecture", read_narrow)


def rehearse(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report; the checkpoints are gone."""
    shallow = (*SHALLOW, "scale.max_pixels=25088")
    places = ("--out", str(tmp_path / "out"), "--workspace", str(tmp_path))
    code = gpu_check.main([*shallow, *places, *arguments])
    reports = list((tmp_path / "out").glob("*.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    return code, json.loads(reports[0].read_text())
