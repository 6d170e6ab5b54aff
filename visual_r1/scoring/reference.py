"""Reference: the released evaluator's own rule, with its quirks, so that published numbers can be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visual_r1.examples import Example, Rollout
from visual_r1.scoring.extraction import extracted_texts
from visual_r1.scoring.scorer import Part, plain_mean


@dataclass(frozen=True)
class Reference:
    """VisualThinker-R1-Zero's verdict on CV-Bench; a plain mean over items.

    The first ``<answer>`` tag whose content is on one line is scored, or, without one or when it is empty, the whole
    response. Letters and choices are looked for in it, and the last one found decides; it is compared with the right
    choice's words and letter. Much is right by this rule that the strict one does not take for an answer: the article
    in "I see a dog." is answer (A), "A or B" is right where (A) is. And some is wrong that a reader would accept: a
    choice with a capital that the data has not, a number in words.

    Source: ``src/eval/evaluate_Qwen2_VL_CVBench-base.py`` of turningpoint-ai/VisualThinker-R1-Zero, commit cd71978,
    lines 157 to 189, with math-verify 0.5.2. Not offered: the script's ``--precomputed_json``, which drops the last
    item and still divides by all of them.
    """

    def __call__(self, rollout: Rollout) -> bool:
        example = rollout.example
        letter, words = example.solution, example.solution_text
        right = {words.lower(), words, letter, letter.lower(), f"({letter.lower()})", f"({letter})"}
        scored = tagged_answer(rollout.completion) or rollout.completion
        return not {one.strip() for one in right}.isdisjoint(extracted_texts(scored, example.choices))

    def is_read(self, rollout: Rollout) -> bool:
        """Whether a tag that is not empty was scored, and not the whole response."""
        return bool(tagged_answer(rollout.completion))

    def parts(self, examples: Sequence[Example]) -> tuple[Part, ...]:
        return plain_mean(examples)

    def problem(self, examples: Sequence[Example]) -> str | None:
        return None

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        return {}


def tagged_answer(response: str) -> str | None:
    r"""What the expression ``<answer>\s*(.*?)\s*</answer>`` finds first, in time that grows with the length alone.

    The content may stand on a line of its own, but not on two; then the next opening tag has its turn. An opening tag
    inside the content belongs to it.
    """
    start = response.find("<answer>")
    while start >= 0:
        start += len("<answer>")
        end = response.find("</answer>", start)
        if end < 0:
            return None
        content = response[start:end].strip()
        if "\n" not in content:
            return content
        start = response.find("<answer>", start)
    return None
