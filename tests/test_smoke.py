"""The first look at something new says what is wrong with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from visual_r1.prompts import PROMPT_STYLES
from visual_r1.smoke import NUM_PROMPTS, check_solution, smoke


def test_smoke_shows_prompts_and_scores_every_solution(checkpoint, tmp_path):
    lines: list[str] = []
    overrides = [
        f"scale.checkpoints.base={checkpoint('base')}",
        f"runs_dir={tmp_path}",
        "scale.max_completion_length=4",
        "scale.train_size=40",
        "scale.probe_size=8",
        "scale.benchmark_size=8",
    ]
    smoke(overrides, show=lines.append)
    assert sum(line.startswith("--- spatial/train/") for line in lines) == NUM_PROMPTS
    assert sum(line.startswith(PROMPT_STYLES["base"].template[:40]) for line in lines) == NUM_PROMPTS
    assert lines[-1] == "every solution scores 1"
    assert not list(tmp_path.iterdir())  # a look leaves nothing behind


@pytest.mark.parametrize("style", PROMPT_STYLES.values(), ids=PROMPT_STYLES)
def test_a_solution_that_its_own_words_cannot_name_is_refused(rollout, style):
    example = rollout("").example
    check_solution(style, example)
    # "1." and "1" are told apart by their letters, but not by their words.
    ambiguous = replace(example, choices=("1.", "1"), solution="A", id="row-7")
    with pytest.raises(ValueError, match=r"row-7: its own solution .*1\..* does not score 1"):
        check_solution(style, ambiguous)
