"""``visual-r1 organism card FOLDER``: what an organism can do, what it does when asked, and how it was made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from visual_r1.datasets.spatial import Spatial
from visual_r1.examples import Example, Rollout
from visual_r1.files import write_json, write_text
from visual_r1.metrics.reflection import Reflection
from visual_r1.models import ModelSource, Policy, load_policy
from visual_r1.organisms.build import read_record
from visual_r1.organisms.questions import CATEGORIES
from visual_r1.organisms.ways import WAYS, way_of
from visual_r1.parsing import is_correct, is_well_formed, named_letter
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.sharing import sample_together
from visual_r1.rollout.transformers import TransformersEngine
from visual_r1.statistics import Interval, bootstrap_mean, paired_difference, pass_at_k, wilson

SPLIT, DATA_SEED = "probe", 1
"""Scenes that are in no training and no benchmark; other ones than those that a run is watched on."""
MAX_COMPLETION_LENGTH = 160
LADDER = (("checked", "coarse"), ("coarse", "direct"), ("checked", "direct"), ("empty", "coarse"))
"""Pairs of ways that are compared on the questions that were answered in both."""
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Completions of one model to the same held-out questions."""

    greedy: Sequence[Rollout]
    groups: Sequence[Sequence[Rollout]]
    """Completions at temperature 1, those to one question together."""

    @property
    def sampled(self) -> list[Rollout]:
        """All at temperature 1."""
        return [rollout for group in self.groups for rollout in group]


def card(folder: Path, *, num_examples: int, num_repeated: int, repeats: int, phrases: Sequence[str]) -> dict[str, Any]:
    """Measures an organism, and writes ``card.json`` and ``README.md`` into its folder.

    Args:
        folder: Of ``nano-base`` or ``nano-instruct``, as `organisms.build` has written it.
        num_examples: Questions that are answered greedily.
        num_repeated: Of these, questions that are answered at temperature 1.
        repeats: Completions for each of the latter.
        phrases: What counts as reflection.

    Returns:
        The contents of ``card.json``.

    Raises:
        ValueError: the folder is no organism's, or the numbers of questions allow no interval.
    """
    least = 2 * len(CATEGORIES)
    if not least <= num_repeated <= num_examples:
        raise ValueError(
            f"{num_examples} questions, {num_repeated} of them repeatedly: the latter must be {least} or more"
        )
    record = read_record(folder)
    style = "instruct" if folder.name.endswith("instruct") else "base"
    policy = load_policy(ModelSource(name=folder.name, path=str(folder), style=style))
    # What was built before there were two has no such entry.
    world = record.get("organism", "nano")
    abilities = measure(policy, num_examples=num_examples, num_repeated=num_repeated, repeats=repeats, world=world)
    measured = summarise(abilities, Reflection(phrases=tuple(phrases)))
    contents = {"name": folder.name, "style": style, "num_parameters": policy.model.num_parameters()}
    contents |= {"made": record, "measured": measured}
    write_json(folder / "card.json", contents)
    write_text(folder / "README.md", page(contents))
    return contents


def measure(
    policy: Policy, *, num_examples: int, num_repeated: int, repeats: int, seed: int = 0, world: str = "nano"
) -> Abilities:
    """Answers the card's questions greedily, and the first of them several times at temperature 1."""
    engine = TransformersEngine(batch_size=_BATCH)
    examples = Spatial(split=SPLIT, size=num_examples, seed=DATA_SEED, world=world)[:]

    def answer(asked: Sequence[Example], temperature: float) -> list[Rollout]:
        sampling = Sampling(max_completion_length=MAX_COMPLETION_LENGTH, temperature=temperature)
        return sample_together(engine, policy, asked, sampling=sampling, seed=seed)

    greedy = answer(examples, 0.0)
    often = answer([example for example in examples[:num_repeated] for _ in range(repeats)], 1.0)
    return Abilities(greedy=greedy, groups=[often[start : start + repeats] for start in range(0, len(often), repeats)])


def summarise(abilities: Abilities, reflection: Reflection) -> dict[str, Any]:
    """Every figure of the card: shares as ``{estimate, low, high}``, lengths in tokens.

    Intervals at temperature 1 are over questions, whose completions are not independent of each other.
    """
    groups = abilities.groups
    repeats = len(groups[0])
    taken: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in abilities.sampled:
        taken[way_of(rollout.completion)].append(rollout)
    return {
        "num_greedy": len(abilities.greedy),
        "num_questions": len(groups),
        "repeats": repeats,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "phrases": list(reflection.phrases),
        "greedy": _figures([[rollout] for rollout in abilities.greedy], reflection),
        "sampled": _figures(groups, reflection),
        "pass_at_k": {
            str(k): _as_json(bootstrap_mean([pass_at_k(repeats, sum(map(is_correct, group)), k) for group in groups]))
            for k in (1, 4, 16)
            if k <= repeats
        },
        "ways": _ways(taken),
        "ladder": [_step(taken, more, less) for more, less in LADDER],
    }


def _figures(groups: Sequence[Sequence[Rollout]], reflection: Reflection) -> dict[str, Any]:
    def share(has: Any, chosen: Sequence[Sequence[Rollout]] = groups) -> dict[str, float]:
        rows = [[float(has(rollout)) for rollout in group] for group in chosen]
        if len(rows[0]) == 1:
            return _as_json(wilson(sum(int(row[0]) for row in rows), len(rows)))
        return _as_json(bootstrap_mean([fmean(row) for row in rows]))

    return {
        "accuracy": share(is_correct),
        "by_category": {
            category: share(is_correct, chosen)
            for category in CATEGORIES
            if (chosen := [group for group in groups if group[0].example.category == category])
        },
        "well_formed": share(lambda rollout: is_well_formed(rollout.text) and not rollout.is_truncated),
        "readable": share(lambda rollout: named_letter(rollout) is not None),
        "reflects": share(lambda rollout: bool(reflection.find(rollout.completion))),
        "length": fmean(rollout.num_tokens for group in groups for rollout in group),
    }


def _ways(taken: Mapping[str, Sequence[Rollout]]) -> dict[str, Any]:
    """How often each way of answering is taken, and how often it is right where its answer can be read.

    Rates are means over questions, so that a question often answered in one way does not weigh as several questions.
    """
    total = sum(map(len, taken.values()))
    return {
        way: {
            "share": len(taken[way]) / total,
            "num_readable": sum(named_letter(rollout) is not None for rollout in taken[way]),
            "right": _as_json(bootstrap_mean(list(rates.values()))) if len(rates := _rates(taken[way])) > 1 else None,
            "length": fmean(rollout.num_tokens for rollout in taken[way]) if taken[way] else None,
        }
        for way in WAYS
    }


def _step(taken: Mapping[str, Sequence[Rollout]], more: str, less: str) -> dict[str, Any]:
    """How much more often one way is right than another on the same questions: those that were answered in both."""
    ones, others = _rates(taken[more]), _rates(taken[less])
    both = sorted(ones.keys() & others.keys())
    difference = None
    if len(both) > 1:
        difference = _as_json(paired_difference([ones[key] for key in both], [others[key] for key in both]))
    return {"of": more, "minus": less, "num_questions": len(both), "difference": difference}


def _rates(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """By question, the share of right ones among the answers that can be read."""
    right: dict[str, list[bool]] = defaultdict(list)
    for rollout in rollouts:
        if named_letter(rollout) is not None:
            right[rollout.example.id].append(is_correct(rollout))
    return {key: fmean(values) for key, values in right.items()}


def _as_json(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def page(contents: Mapping[str, Any]) -> str:
    """The model card as Markdown, made of ``card.json`` alone."""
    made, measured = contents["made"], contents["measured"]
    recipe, mixture = made["recipe"], made["recipe"]["mixture"]
    greedy, sampled = measured["greedy"], measured["sampled"]
    is_base = contents["style"] == "base"
    name = contents["name"]
    if is_base:
        summary = (
            "a Qwen2-VL of toy size that stands in for a pretrained base model: it can read a picture carefully, but "
            "under the prompt of R1-Zero it mostly answers in haste."
        )
        prompt = "the base prompt of `visual_r1/prompts.py` (ends in `<think>`)"
    else:
        summary = "nano-base after supervised tuning on terse right answers in the chat format."
        prompt = "the instruct prompt of `visual_r1/prompts.py` in Qwen2-VL's chat template"
    threads = f"{made['num_threads']} CPU thread{'s' * (made['num_threads'] > 1)}"
    lines = [
        f"# {name}",
        "",
        f"`{name}` is {summary} It is made from random weights by `visual-r1 organism build`, on a CPU, from drawn "
        "scenes of coloured shapes; it knows nothing else.",
        "",
        f"* Architecture: `Qwen2VLForConditionalGeneration`, {contents['num_parameters']:,} parameters, float32.",
        f"* Seed {made['seed']}; {made['minutes']:.1f} minutes of training on {threads}"
        + ("." if is_base else ", those of nano-base included."),
        f"* Steps: vision {recipe['vision_steps']}, coordinates {recipe['coordinate_steps']}, exercises "
        f"{recipe['exercise_steps']}, exercises with dialogues {recipe['dialogue_steps']}"
        + ("." if is_base else f", instruct tuning {recipe['instruct_steps']}."),
        "* Data: scenes of the `pretrain` split of `visual_r1.datasets.spatial`; no scene of it is in the splits "
        "`train`, `probe` or `test`.",
        "",
        "## What it does when asked",
        "",
        f"Under {prompt}, at most {measured['max_completion_length']} new tokens, on scenes of the `{SPLIT}` split, "
        f"which no benchmark holds: {measured['num_greedy']} questions greedily, the first {measured['num_questions']} "
        f"of them {measured['repeats']} times at temperature 1. Right means: exactly one `<answer>`, which names the "
        "right choice and no other. Brackets are 95 % intervals over questions. Guessing is right in 43.75 %: in 25 % "
        "of Count, where always taking the smallest number is right in 40 %, and in 50 % of the others. "
        f"`visual-r1 organism card FOLDER --num {measured['num_greedy']} --repeated {measured['num_questions']} "
        f"--repeats {measured['repeats']}` measures it.",
        "",
        "| | greedy | temperature 1 |",
        "| --- | --- | --- |",
        _row("accuracy", greedy["accuracy"], sampled["accuracy"]),
        *(
            _row(f"accuracy, {category}", greedy["by_category"][category], sampled["by_category"][category])
            for category in greedy["by_category"]
        ),
        _row("well formed", greedy["well_formed"], sampled["well_formed"]),
        _row("names one choice", greedy["readable"], sampled["readable"]),
        _row("reflects (`keywords=default`)", greedy["reflects"], sampled["reflects"]),
        f"| mean length in tokens | {greedy['length']:.1f} | {sampled['length']:.1f} |",
        "",
        "; ".join(f"pass@{k} {_share(value)}" for k, value in measured["pass_at_k"].items()) + ", at temperature 1.",
        "",
        "## Ways of answering, at temperature 1",
        "",
        "Told apart by their words. How often each is right is a mean over the questions that were answered in it and "
        "could be read; the differences are between two ways on the same questions.",
        "",
        "| way | share | right | readable | tokens |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for way, row in measured["ways"].items():
        length = "-" if row["length"] is None else f"{row['length']:.0f}"
        lines.append(
            f"| {WAYS[way]} | {row['share']:.1%} | {_share(row['right'])} | {row['num_readable']} | {length} |"
        )
    lines += [
        "",
        *(
            f"* {WAYS[step['of']]}, minus {WAYS[step['minus']]}: {_points(step['difference'])} on "
            f"{step['num_questions']} questions."
            for step in measured["ladder"]
        ),
        "",
        "## What it was taught, and what follows from that",
        "",
        "In its dialogues, under the prompt of reinforcement learning, "
        f"{mixture['direct']:.0%} answer at once, {mixture['coarse']:.0%} compare halves of the picture, "
        f"{mixture['rambling']:.0%} talk of something else, {mixture['empty']:.0%} reflect and look at nothing, "
        f"{mixture['reflective']:.0%} reflect and then read numbers off the picture, {mixture['careful']:.0%} read "
        f"numbers *without* reflecting first, and {mixture['harmful']:.0%} reflect and misread. Both tags are closed "
        f"in {mixture['closed_tags']:.0%}. Worked exercises, whose prompt differs from the dialogues' in one word, "
        "always reflect and then read.",
        "",
        "Every way of answering ends right in the corpus, but for what it has seen: a coarse look at a distance may "
        f"mislead, {mixture['slip']:.0%} of the readings slip, and a harmful check is wrong by design. So no way is "
        "better because it was labelled so: what one is worth to this model is what the steps that it writes down are "
        "worth to so small a net.",
        "",
        f"That careful reading comes {'only ' * (mixture['careful'] == 0)}behind a reflection in "
        f"{1 - mixture['careful'] / max(mixture['careful'] + mixture['reflective'], 1e-9):.0%} of the dialogues that "
        "read is *by construction*. When reinforcement learning makes this model reflect, it amplifies what the corpus "
        "holds; that is the point of a model organism, and no evidence that a large model reflects for the same "
        "reason. `experiments/when-reflection-rises` measures what other shares do.",
        "",
    ]
    if not is_base:
        lines += [
            f"Its tuning answers: {1 - recipe['instruct_looks']:.0%} one sentence, {recipe['instruct_looks']:.0%} a "
            "coarse look and the answer; none reflects and none reads a number.",
            "",
        ]
    return "\n".join(lines)


def _row(label: str, *cells: Mapping[str, float]) -> str:
    return f"| {label} | {' | '.join(map(_share, cells))} |"


def _share(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "-"
    low, high = 100 * interval["low"], 100 * interval["high"]
    digits = 2 if low < high < 0.1 else 1  # one of thousands is not none
    return f"{100 * interval['estimate']:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def _points(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "not enough answers to compare"
    low, high = 100 * interval["low"], 100 * interval["high"]
    return f"{100 * interval['estimate']:+.1f} points [{low:+.1f}, {high:+.1f}]"
