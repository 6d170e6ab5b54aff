"""Makes tests/scoring/reference_verdicts.json again: what math-verify 0.5.2, the paper's, says about each response.

It runs where math-verify 0.5.2 is installed, which is not beside this project (it needs another antlr4 than
hydra-core), and imports nothing of this project:

    python -m venv paper && paper/bin/pip install math-verify==0.5.2
    paper/bin/python tools/reference_verdicts.py tests/scoring/reference_verdicts.json

The responses in the file stay as they are; their verdicts are written anew.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

LETTERS = "ABCDEF"
SPELLINGS = tuple(template.format(letter) for template in ("{}", "({})") for letter in (*LETTERS, *LETTERS.lower()))


def letters_judged_right(response: str, choices: list[str]) -> str:
    """The letters that would have been right answers to a question with these choices, each asked on its own.

    As lines 180 to 204 of ``src/eval/evaluate_Qwen2_VL_CVBench-base.py`` do in turningpoint-ai/VisualThinker-R1-Zero,
    commit cd71978.
    """
    tag = re.search(r"<answer>\s*(.*?)\s*</answer>", response)
    scored = (tag and tag[1]) or response
    # Where the reference lists (a) before (A) makes no difference: no spelling begins with another.
    words = StringExtractionConfig(strings=(*SPELLINGS, *choices))
    parsed = parse(scored, extraction_config=[LatexExtractionConfig(), ExprExtractionConfig(), words])
    right = ""
    for letter, choice in zip(LETTERS, choices, strict=False):
        gold: list[Any] = [choice.lower(), choice, letter, letter.lower(), f"({letter.lower()})", f"({letter})"]
        right += letter if verify(target=parsed, gold=gold) else ""
    return right


def main(path: Path) -> None:
    """Rewrites the verdicts of a file."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    for question in golden["questions"]:
        for case in question["responses"]:
            case[1] = letters_judged_right(case[0], question["choices"])
    golden["made_by"] = f"tools/reference_verdicts.py with math-verify {version('math-verify')}"
    lines = json.dumps(golden, ensure_ascii=True, indent=None, separators=(",", ":"))
    path.write_text(lines.replace("],[", "],\n[") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
