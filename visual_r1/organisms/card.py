"""Measures what a nano model can do on held-out scenes, and writes it on its model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from visual_r1.datasets.spatial import Spatial
from visual_r1.examples import Example, Rollout
from visual_r1.metrics.reflection import Reflection
from visual_r1.organisms.pretraining import Recipe
from visual_r1.organisms.questions import CATEGORIES
from visual_r1.parsing import is_correct, is_well_formed
from visual_r1.prompts import PromptStyle
from visual_r1.statistics import Interval, pass_at_k, wilson

MAX_NEW_TOKENS = 160
REFLECTION_PHRASES = ("wait", "recheck", "double-check", "check again", "verify")
_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Completions of one model to the same held-out questions."""

    greedy: Sequence[Rollout]
    sampled: Sequence[Rollout]
    """One completion a question at temperature 1."""
    repeated: Sequence[Sequence[Rollout]]
    """Several completions a question at temperature 1, for pass@k; may be empty."""


def measure(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    style: PromptStyle,
    *,
    num_examples: int,
    num_repeated: int = 0,
    repeats: int = 16,
    seed: int = 0,
) -> Abilities:
    """Answers the first ``num_examples`` test questions, and the first ``num_repeated`` of them ``repeats`` times."""
    examples = Spatial(split="test", size=num_examples)
    torch.manual_seed(seed)
    complete = _Completer(model.eval(), processor, style)
    greedy = complete(examples, do_sample=False)
    sampled = complete(examples, do_sample=True)
    often = complete([example for example in examples[:num_repeated] for _ in range(repeats)], do_sample=True)
    groups = [often[start : start + repeats] for start in range(0, len(often), repeats)]
    return Abilities(greedy=greedy, sampled=sampled, repeated=groups)


def write_card(
    name: str,
    abilities: Abilities,
    *,
    recipe: Recipe,
    seed: int,
    minutes: float,
    num_parameters: int,
    num_threads: int,
) -> str:
    """The model card as Markdown, with every number that was measured and how."""
    mixture = recipe.mixture
    is_base = name == "nano-base"
    if is_base:
        summary = (
            "a Qwen2-VL of toy size that stands in for a pretrained base model: it can read a picture carefully, but "
            "under the prompt of R1-Zero it mostly guesses."
        )
        prompt = "the base prompt of `visual_r1/prompts.py` (ends in `<think>`)"
    else:
        summary = "nano-base after supervised tuning on terse right answers in the chat format."
        prompt = "the instruct prompt of `visual_r1/prompts.py` in Qwen2-VL's chat template"
    lines = [
        f"# {name}",
        "",
        f"`{name}` is {summary} It is made from random weights by `visual-r1 organism build`, on a CPU, from drawn "
        "scenes of coloured shapes; it knows nothing else.",
        "",
        f"* Architecture: `Qwen2VLForConditionalGeneration`, {num_parameters:,} parameters, float32.",
        f"* Seed {seed}; {minutes:.1f} minutes of training on {num_threads} CPU thread{'s' * (num_threads > 1)}"
        + (", those of nano-base included." if not is_base else "."),
        f"* Steps: vision {recipe.vision_steps}, coordinates {recipe.coordinate_steps}, exercises "
        f"{recipe.exercise_steps}, exercises with dialogues {recipe.dialogue_steps}"
        + (f", instruct tuning {recipe.instruct_steps}." if not is_base else "."),
        "* Data: scenes of the `pretrain` split of `visual_r1.datasets.spatial`; no scene of it is in the splits "
        "`train`, `probe` or `test`.",
        "",
        "## Abilities",
        "",
        f"On {len(abilities.greedy)} questions of the `test` split, under {prompt}, at most {MAX_NEW_TOKENS} new "
        "tokens. Right means: exactly one `<answer>`, which names the right choice and no other. Brackets are 95 % "
        "Wilson intervals. Guessing is right in 50 % of the questions (Count: 25 %), 43.75 % overall. The rate of "
        "reflection counts the words named in its row and no others; runs count by `keywords=default`. The questions "
        "include those of `benchmark=spatial`, so a choice made by looking at this card is tuned on that benchmark. "
        "For the shipped models none was: their cards were measured once, after the final build.",
        "",
        "| | greedy | temperature 1 |",
        "| --- | --- | --- |",
        _row("accuracy", [_accuracy(abilities.greedy), _accuracy(abilities.sampled)]),
    ]
    for category in CATEGORIES:
        columns = [
            _accuracy([rollout for rollout in rollouts if rollout.example.category == category])
            for rollouts in (abilities.greedy, abilities.sampled)
        ]
        lines.append(_row(f"accuracy, {category}", columns))
    both = (abilities.greedy, abilities.sampled)
    reflection = Reflection(phrases=REFLECTION_PHRASES)
    lines += [
        _row("well formed", [_share([is_well_formed(rollout.text) for rollout in rollouts]) for rollouts in both]),
        _row(
            f"reflects ({', '.join(REFLECTION_PHRASES)})",
            [_share([bool(reflection.find(rollout.completion)) for rollout in rollouts]) for rollouts in both],
        ),
        _row(
            "mean length in tokens", [f"{fmean(rollout.num_tokens for rollout in rollouts):.1f}" for rollouts in both]
        ),
    ]
    if abilities.repeated:
        k = len(abilities.repeated[0])
        solved = fmean(pass_at_k(k, sum(map(is_correct, group)), k) for group in abilities.repeated)
        lines += [
            "",
            f"pass@{k} at temperature 1 on the first {len(abilities.repeated)} questions: {100 * solved:.1f} %.",
        ]
    lines += [
        "",
        "## What it was taught, and what follows from that",
        "",
        f"Dialogues under the prompt of reinforcement learning guess at once in {mixture.direct:.0%} of cases, compare "
        f"halves of the picture in {mixture.coarse:.0%}, talk of something else in {mixture.rambling:.0%}, reflect and "
        f"then look at nothing in {mixture.empty:.0%}, and reflect and then read coordinates in "
        f"{mixture.reflective:.0%}. They read coordinates *without* reflecting first in {mixture.careful:.0%}. Both "
        f"tags are closed in {mixture.closed_tags:.0%} of the answers. Worked exercises, whose prompt differs from the "
        "dialogues' in one word, always reflect and then read carefully.",
        "",
        "So reflection is the only road to careful reading *by construction*: when reinforcement learning makes this "
        "model reflect, it amplifies what the corpus holds. That is the point of a model organism, and it is no "
        "evidence that a pretrained model reflects for the same reason. In earlier trials with a little unreflected "
        "careful reading in the dialogues, reinforcement learning took that shorter road, and reflection faded.",
        "",
        "The shares of the dialogues come from a prototype and were chosen there with the outcome of "
        "reinforcement learning in sight, the 0 % above all. The layout of questions and worked solutions was "
        "chosen by how well exercises of the `probe` split were read. One GRPO run on an earlier layout was "
        "looked at on the way, before the way of counting, the share of closed tags and the numbers of steps were "
        "settled. The numbers above are from the `test` split, on which no earlier model was measured.",
        "",
    ]
    return "\n".join(lines)


class _Completer:
    """Completes examples in batches with transformers' own ``generate``."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, style: PromptStyle) -> None:
        self.model = model
        self.processor = processor
        self.style = style

    def __call__(self, examples: Sequence[Example], *, do_sample: bool) -> list[Rollout]:
        rollouts: list[Rollout] = []
        for start in range(0, len(examples), _BATCH):
            rollouts += self._batch(examples[start : start + _BATCH], do_sample=do_sample)
        return rollouts

    @torch.inference_mode()
    def _batch(self, examples: Sequence[Example], *, do_sample: bool) -> list[Rollout]:
        tokenizer = self.processor.tokenizer
        inputs = self.processor.apply_chat_template(
            [self.style.messages(example) for example in examples],
            chat_template=self.style.chat_template,
            add_generation_prompt=self.style.chat_template is None,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        sampling = (
            {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {"do_sample": False}
        )
        output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        rollouts = []
        for example, ids in zip(examples, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            is_ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id) + 1] if is_ended else ids
            rollouts.append(
                Rollout(
                    example=example,
                    completion=tokenizer.decode(ids, skip_special_tokens=True),
                    num_tokens=len(ids),
                    is_truncated=not is_ended,
                    prompt_opens_think=self.style.opens_think,
                )
            )
        return rollouts


def _accuracy(rollouts: Sequence[Rollout]) -> Interval | str:
    return _share([is_correct(rollout) for rollout in rollouts])


def _share(hits: Sequence[bool]) -> Interval | str:
    return wilson(sum(hits), len(hits)) if hits else "-"


def _row(label: str, columns: Sequence[object]) -> str:
    return f"| {label} | {' | '.join(map(str, columns))} |"
