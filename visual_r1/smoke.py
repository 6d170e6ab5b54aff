"""A first look at a new dataset, model or method, before anything is trained: ``visual-r1 smoke dataset=x``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from visual_r1.config import compose_config
from visual_r1.examples import Example, Rollout
from visual_r1.experiment import prepare
from visual_r1.parsing import is_correct
from visual_r1.prompts import PromptStyle

NUM_PROMPTS = 5


def smoke(overrides: Sequence[str], *, show: Callable[[str], object] = print) -> None:
    """Checks the config, shows five prompts with what the policy answers, and scores every example's own solution.

    Args:
        overrides: as on the command line of ``run.py``.
        show: takes each line.

    Raises:
        ValueError: the config cannot run, or an example's own solution does not score 1.
    """
    from visual_r1.models import load_policy
    from visual_r1.rollout.engine import sample

    experiment = prepare(compose_config([*overrides, "name=smoke"]))
    style = experiment.source.prompt_style
    datasets = {"train": experiment.train, "probe": experiment.probe, "benchmark": experiment.benchmark}
    for name, examples in datasets.items():
        for index in tqdm(range(len(examples)), desc=f"solutions, {name}", unit="example"):
            check_solution(style, examples[index])
    policy = load_policy(experiment.source, freeze=experiment.freeze, adapter=experiment.adapter)
    examples = [experiment.train[index] for index in range(min(NUM_PROMPTS, len(experiment.train)))]
    for (rollout,) in sample(experiment.engine, policy, examples, sampling=experiment.benchmark_sampling, seed=0):
        show(f"--- {rollout.example.id}, solution {rollout.example.solution}")
        show(style.text(rollout.example))
        show(f">>> {rollout.completion}")
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    trained = sum(parameter.numel() for parameter in parameters)
    total = sum(parameter.numel() for parameter in policy.model.parameters())
    show(f"{experiment.source.path}: {total:,} parameters, {trained:,} of them trained")
    show("every solution scores 1")


def check_solution(style: PromptStyle, example: Example) -> None:
    """Refuses an example whose own solution, written as SFT would teach it, is not right.

    Raises:
        ValueError: with the example's id.
    """
    rollout = Rollout(
        example=example,
        completion=style.answer_only(example),
        num_tokens=1,
        is_truncated=False,
        prompt_opens_think=style.opens_think,
    )
    written = (f"({example.solution})", example.solution_text, example.solution_as_written)
    for completion in (style.answer_only(replace(example, solution_as_written=one)) for one in written):
        if not is_correct(replace(rollout, completion=completion)):
            raise ValueError(f"{example.id}: its own solution {completion!r} does not score 1; look at its choices")
