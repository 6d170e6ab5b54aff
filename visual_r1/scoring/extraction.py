r"""The texts that math-verify 0.5.2 extracts from a response, on which alone the paper's verdict on CV-Bench depends.

The paper's evaluator compares what ``math_verify.parse`` returns with strings, and to math-verify no symbolic value
equals a string. So two texts at most can make a response right: that of the match which wins, and that of the match
which was tried first. Both are found here in 0.5.2's order:

1. what follows "final answer is", then ``\boxed``, then what follows "answer:", then what follows "answer", then a
   letter or a choice at the very start, then anything anywhere;
2. within one of these, the match that ends last;
3. of matches that end together, the one that starts first.

The library itself is not called. 0.5.2 cannot be installed beside hydra-core (its antlr4 is another), 0.9.0 decides
otherwise in places, and both take minutes over some repetitive responses; here every step is bounded. The expressions
follow math-verify's own (MIT licence, ``math_verify/parser.py``). Verdicts of 0.5.2 that this gives again, and how many
it does not: ``tests/scoring/reference_verdicts.json``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import lru_cache

from visual_r1.scoring.latex import latex_matches, read_formula

_Patterns = tuple[tuple[int, re.Pattern[str]], ...]
"""Patterns with their precedence, lower first."""

_LETTERS = "ABCDEF"
"""The reference looks for six letters, however many choices there are."""

_OPERATORS = r"+\-*×/^()÷"
# Up to the first operator and on from there: the same texts as by 0.5.2's expression, which tries every operator and
# takes cubic time over a row of stars. The bound keeps a row of bare numbers from taking quadratic time.
_EXPRESSION = (
    rf"(?:^|\s|=)(?:\*\*)?(?P<expression>-?\(?-?\d[\d.\s]{{0,200}}[{_OPERATORS}][\d.\s{_OPERATORS}]+\)?)"
    r"(?:\*\*)?(?:[.,:\s)$]|$)"
)
_NUMBER = (
    r"(?:^|\s|=)(?:\*\*)?[$€£¥₹₽₪₩₫฿₡₢₣₤₥₦₧₨₭₮₯₰₱₲₳₴₵₶₷₸₺₻₼₾₿]?"
    r"(?:(?P<integer_1>-?\d{1,3}(?:[ ,]\d{3})+)(?P<decimal_1>\.\d+)?|(?P<integer_2>-?\d+)(?P<decimal_2>[.,]\d+)"
    r"|(?P<decimal_3>\.\d+)|(?P<integer_3>-?\d+))(?:\s*(?:%|[Pp]ercent|[Pp]ct))?"
)
_EITHER = f"(?:{_EXPRESSION}|{_NUMBER})"
_NUMBERS: _Patterns = (
    (0, re.compile(rf"(?i:final answer is):?\s*{_EITHER}\.?\s?I hope")),
    (50, re.compile(rf"(?i:final answer.{{0,100}}?)\s+is:?{_EITHER}")),
    (100, re.compile(rf"(?i:answer):(?:.{{0,100}}=\s*|.{{0,50}}?){_EITHER}(?!\s*=)")),
    (200, re.compile(rf"(?i:answer)(?:.{{0,100}}=\s*|.{{0,50}}?){_EITHER}(?!\s*=)")),
    (300, re.compile(_EXPRESSION)),
    (300, re.compile(_NUMBER)),
)


@dataclass(frozen=True)
class _Found:
    """What a match says."""

    said: str
    """Its text; empty when it says nothing."""
    value: str | None
    """The text that it stands for; None for a number or a formula, which equals no text."""
    ends_search: bool
    """It could be made sense of."""


@lru_cache(maxsize=8192)  # a report asks for each response several times: overall, by category, by item
def extracted_texts(text: str, choices: tuple[str, ...]) -> frozenset[str]:
    """The texts among what math-verify 0.5.2 extracts, without outer blanks; at most two, and often none.

    Args:
        text: A response, or a part of it.
        choices: The words of the choices, which must be spelled as here, capitals included; letters may be small.
    """
    matches = [
        *((precedence, match, _read_formula) for precedence, match in latex_matches(text)),
        *((precedence, match, _read_number) for precedence, match in _matches(_NUMBERS, text)),
        *((precedence, match, _read_words) for precedence, match in _matches(_words(choices), text)),
    ]
    # Python's sort keeps the order of equals: formulas before numbers before words.
    matches.sort(key=lambda one: (one[0], -one[1].end(), one[1].start()))
    first = ""
    for _, match, read in matches:
        found = read(match)
        first = first or found.said
        if found.ends_search:
            return frozenset({one.strip() for one in (first, found.value or "")} - {""})
    return frozenset({first.strip()} - {""})


@lru_cache(maxsize=4096)
def _words(choices: tuple[str, ...]) -> _Patterns:
    upper, lower = tuple(_LETTERS), tuple(_LETTERS.lower())
    spellings = (*upper, *lower, *map("({})".format, lower), *map("({})".format, upper), *choices)
    said = f"(?P<said>{'|'.join(map(re.escape, spellings))})"
    end = r"(?:\*\*)?(?:[.,:\s]|$)"
    alone = rf"(?:^|\s)(?:\*\*)?{said}{end}"
    return (
        (0, re.compile(rf"(?i:final answer is):?\s*{said}\.?\s?I hope")),
        (50, re.compile(rf"(?i:final answer.{{0,100}}?)\s+is:?\s*{said}")),
        (100, re.compile(rf"(?i:answer):.{{0,50}}?{alone}")),
        (200, re.compile(rf"(?i:answer).{{0,50}}?{alone}")),
        (250, re.compile(rf"^(?:\*\*)?{said}{end}")),
        (300, re.compile(alone)),
    )


def _matches(patterns: _Patterns, text: str) -> list[tuple[int, re.Match[str]]]:
    return [(precedence, match) for precedence, pattern in patterns for match in pattern.finditer(text)]


def _read_words(match: re.Match[str]) -> _Found:
    return _Found(match["said"], value=match["said"].lower(), ends_search=True)


def _read_formula(match: re.Match[str]) -> _Found:
    formula = read_formula(match)
    return _Found(formula.text, value=None, ends_search=formula.is_parsed)


def _read_number(match: re.Match[str]) -> _Found:
    groups = {name: found for name, found in match.groupdict().items() if found}
    if expression := groups.get("expression"):
        return _Found(expression, value=None, ends_search=_is_expression(expression))
    integer = "".join(found for name, found in groups.items() if name.startswith("integer"))
    decimal = "".join(found for name, found in groups.items() if name.startswith("decimal"))
    integer = integer.replace(",", "").replace(" ", "").lstrip("0") or "0"
    return _Found(integer + decimal.replace(",", "."), value=None, ends_search=True)


def _is_expression(text: str) -> bool:
    """Whether sympy reads a text of digits and operators: what Python's grammar allows, but a number is no function."""
    try:
        tree = ast.parse(text.replace("\n", " ").replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return not any(isinstance(node, ast.Call) for node in ast.walk(tree))
