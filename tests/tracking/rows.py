"""Rollouts as trackers are given them."""

from __future__ import annotations

from typing import Any

from PIL import Image

TRAINED = {"scores": {"format": 0.0, "accuracy": 1.0}, "advantage": 0.5, "group": 3}


def rollout_row(*, example="spatial/train/17", completion="Wait. </think> <answer>(B)</answer>", **extra) -> Any:
    return {
        "example_id": example,
        "category": "Depth",
        "images": (Image.new("RGB", (28, 28), "red"),),
        "question": "Which is closer?",
        "completion": completion,
        "solution": "B",
        "choice": "B",
        "correct": True,
        "num_tokens": 7,
        "is_truncated": False,
        "keyword_hits": ["wait"],
        **extra,
    }
