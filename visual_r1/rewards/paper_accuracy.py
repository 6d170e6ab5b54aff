"""Paper accuracy: the accuracy reward of the paper's released code, slips included."""

from __future__ import annotations

import re
from dataclasses import dataclass

from visual_r1.examples import Rollout

_LONE_LETTER = re.compile(r"(^|\s|\[|\()([A-H])(\s|\]|\)|$)")


@dataclass(frozen=True)
class PaperAccuracy:
    """1.0 when the completion's first answer is the solution as the data writes it, letter by letter, else 0.0.

    An answer is what stands in the first ``<answer>`` pair on one line, without outer blanks; with no such pair, the
    whole completion. The comparison sees capitals, full stops and articles: "Chair", "chair." and "the chair" are
    wrong where the data says "chair", and so is an answer with a line break inside its tags. A second answer, and what
    stands around the first, are not looked at. Where the data's answer is a lone capital from A to H, the last lone
    capital of the completion's answer may name it too; no answer of SAT is one.

    The released code first asks math_verify (0.5.2) whether the completion equals ``<answer>solution</answer>``; that
    text parses to nothing, so this half never pays and is left out.

    Reference: ``accuracy_reward`` in ``grpo.py`` of turningpoint-ai/VisualThinker-R1-Zero, commit cd71978.
    """

    def __call__(self, rollout: Rollout) -> float:
        example = rollout.example
        solution = (example.solution_as_written or example.solution).strip()
        answer = _first_answer(rollout.completion)
        letters = [match[1] for match in _LONE_LETTER.findall(answer)]
        return float(answer == solution or letters[-1:] == [solution])


def _first_answer(completion: str) -> str:
    r"""What ``<answer>(.*?)</answer>`` finds first, in linear time, or the whole completion; stripped."""
    for line in completion.split("\n"):
        answer, closed, _ = line.partition("<answer>")[2].partition("</answer>")
        if closed:
            return answer.strip()
    return completion.strip()
