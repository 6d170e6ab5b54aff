"""Run folders as runs leave them, written in milliseconds: the real file formats, with made-up answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from visual_r1.datasets.spatial import Spatial
from visual_r1.evaluation import Report, summarise
from visual_r1.examples import Example, Rollout
from visual_r1.files import write_json, write_jsonl, write_parquet, write_text
from visual_r1.metrics.reflection import Reflection
from visual_r1.parsing import is_correct, named_letter
from visual_r1.run_folder import RunFolder
from visual_r1.scoring.reference import Reference
from visual_r1.scoring.strict import Strict
from visual_r1.tracking import RolloutRow, write_rollouts

PHRASES = ("wait", "let me check")
_SIZES = (("probe", 16), ("train", 40))
_NODES = {
    split: {"_target_": "visual_r1.datasets.spatial.Spatial", "split": split, "size": size} for split, size in _SIZES
}


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    accuracy: tuple[float, float] = (0.5, 0.8),
    steps: Sequence[int] = (0, 5, 10),
    benchmark: str = "spatial",
    size: int = 40,
    scorers: Sequence[str] = ("strict", "reference"),
    is_finished: bool = True,
    config: dict[str, Any] | None = None,
    completion: str = "{thought}</think>\n<answer>({letter})</answer>",
) -> RunFolder:
    """Writes a run whose answers are right as often as asked, before and after training.

    Args:
        folder: ``NAME/seed<k>``.
        seed: of the run and of its answers.
        accuracy: before and after; the probe goes from one to the other.
        steps: at which the probe was visited; one step is a run that was not trained.
        benchmark: its name.
        size: its items.
        scorers: names; ``strict`` first.
        is_finished: whether it has an evaluation and a summary.
        config: what of the configuration is different.
        completion: what the policy writes; ``{thought}`` and ``{letter}`` are filled in.
    """
    run = RunFolder(folder)
    rng = random.Random(f"{folder.parent.name}/{seed}")
    reflection = Reflection(phrases=PHRASES)
    stored = {
        "name": None,
        "seed": seed,
        "method": {"name": "grpo"},
        "model": {"name": "base", "path": "models/seed0/nano-base", "style": "base", "prompt": "clean"},
        "benchmark": {"name": benchmark, "temperature": 0.0},
        "keywords": {"name": "default", "phrases": list(PHRASES)},
        "scale": {"max_steps": 10, "probe_temperature": 1.0},
        "dataset": {"name": "spatial", **_NODES},
        **(config or {}),
    }
    write_text(run.config, yaml.safe_dump(stored, sort_keys=False))
    write_json(
        run.provenance,
        {
            "started": "2026-01-01T00:00:00+00:00",
            "command": ["run.py"],
            "code": {"commit": "0123456789abcdef", "is_dirty": False},
            "data": {"train": "a", "probe": "b", "benchmark": "c"},
            "versions": {"torch": "2.13.0"},
            "resumes": [],
        },
    )

    def rollout(example: Example, share: float) -> Rollout:
        letter = example.solution if rng.random() < share else next(x for x in "AB" if x != example.solution)
        thought = "I see it. Wait, let me check." if rng.random() < share else "I see it."
        text = completion.replace("{thought}", thought).replace("{letter}", letter)
        return Rollout(
            example=example,
            completion=text,
            num_tokens=len(text.split()) + 1,
            is_truncated=False,
            prompt_opens_think=True,
        )

    def row(one: Rollout, **more: Any) -> RolloutRow:
        return {
            "example_id": one.example.id,
            "category": one.example.category,
            "images": (),
            "question": one.example.question,
            "completion": one.completion,
            "solution": one.example.solution,
            "choice": named_letter(one),
            "correct": is_correct(one),
            "num_tokens": one.num_tokens,
            "is_truncated": False,
            "keyword_hits": reflection.find(one.completion),
            **more,
        }

    rows = []
    probe, train = (Spatial(split=split, size=size) for split, size in _SIZES)
    for step in steps:
        share = accuracy[0] + (accuracy[1] - accuracy[0]) * step / max(steps[-1], 1)
        probed = [rollout(example, share) for example in probe]
        write_rollouts(run.completions_at(step), [row(one) for one in probed], name="probe")
        values: dict[str, Any] = {
            "step": step,
            "probe/accuracy": sum(map(is_correct, probed)) / len(probed),
            "probe/completions/mean_length": sum(one.num_tokens for one in probed) / len(probed),
            "probe/format/parse_rate": 1.0,
            **{f"probe/{key}": value for key, value in reflection(probed).items()},
        }
        if step:
            values |= {"reward": 1 + share, "entropy": 0.5 / step, "kl": 0.01 * step, "step_time": 2.0}
            values |= {"num_tokens": 1000.0 * step, "completions/mean_length": 10.0, "frac_reward_zero_std": 0.25}
            groups = [
                row(rollout(train[step + group], share), scores={"accuracy": 1.0}, advantage=0.5, group=group)
                for group in range(2)
                for _ in range(3)
            ]
            write_rollouts(run.completions_at(step), groups, name="train")
        rows.append(values)
    write_jsonl(run.metrics, rows)
    if not is_finished:
        return run
    examples = Spatial(split="test", size=size)
    rules = {name: {"strict": Strict(), "reference": Reference()}[name] for name in scorers}
    reports = {
        when: Report(
            benchmark=benchmark,
            # All seeds start from one model.
            rollouts=tuple(_seeded(rollout, rng, when, seed)(example, share) for example in examples),
            blank_rollouts=tuple(rollout(example, 0.5) for example in examples),
            reflection=reflection,
            scorers=rules,
        )
        for when, share in zip(("before", "after"), accuracy, strict=True)
    }
    is_trained = len(steps) > 1
    write_parquet(
        run.evaluation_items,
        [
            {"when": when, **item}
            for when, report in reports.items()
            if is_trained or when == "after"
            for item in report.items()
        ],
    )
    write_json(run.evaluation, reports["after"].summary())
    facts: dict[str, Any] = {
        "name": folder.parent.name,
        "seed": seed,
        "model": "models/seed0/nano-base",
        "style": "base",
    }
    facts |= {"prompt": "clean", "method": "grpo", "freeze": "nothing", "adapter": "none", "is_resumed": False}
    facts |= {"steps": steps[-1], "wall_seconds": 100.0 + seed, "commit": "0123456789abcdef", "is_dirty": False}
    before = reports["before"].summary() if is_trained else None
    write_json(run.summary, summarise(before, reports["after"].summary(), **facts))
    return run


def _seeded(rollout: Any, rng: random.Random, when: str, seed: int) -> Any:
    def draw(example: Example, share: float) -> Rollout:
        rng.seed(f"{when}/{example.id}" + (f"/{seed}" if when == "after" else ""))
        return rollout(example, share)

    return draw
