"""Paper format: the format reward of the paper's released code, slips included."""

from __future__ import annotations

import re
from dataclasses import dataclass

from visual_r1.examples import Rollout

_TURN = re.compile(r"</think>\s*<answer>")


@dataclass(frozen=True)
class PaperFormat:
    r"""1.0 when the text matches ``<think>.*?</think>\s*<answer>.*?</answer>`` from end to end, else 0.0.

    The text is the completion with the ``<think>`` that the base prompt opened. A dot stands for anything, tags and
    line breaks included, so that an empty thought, nested tags and a second answer match as well; a blank before or
    after does not.

    Reference: ``format_reward`` in ``grpo.py`` of turningpoint-ai/VisualThinker-R1-Zero, commit cd71978.
    """

    def __call__(self, rollout: Rollout) -> float:
        text = rollout.text
        # The expression itself looks at each pair of tags anew: quadratic time on a completion that is all tags.
        is_framed = text.startswith("<think>") and text.endswith("</answer>")
        return float(is_framed and _TURN.search(text) is not None)
