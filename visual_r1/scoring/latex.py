"""LaTeX in a response, read as math-verify 0.5.2 reads it, by the parts of math-verify 0.9.0 that have not changed.

Only what can decide a verdict is kept: a formula's text after tidying, and whether it can be parsed at all. Where 0.9.0
tidies otherwise (units, chains of equations), 0.5.2's way is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

_MARKS = re.compile(r"[$\\]|\s\[[^\n\]\[]+\]\s")
_TAIL = 1000
_CHAIN = re.compile(r"(?<![\\<!>])=")
_BOX = re.compile(r"\\(?:boxed|fbox)")
_CONNECTION = re.compile(r"\s*(?:and|or|,)\s*")
_UNIT = re.compile(r"(\\(?:text|mbox)\{.*?\})(\^\d|\{\^\d\})?$")
# Given more than this, the parser may take exponential time (subscripts, bars, brackets) or work out a number of many
# million digits (binomials, greatest common divisors). 0.5.2 gives up after three seconds.
_SIMPLE = re.compile(
    r"(?:[^\\|_!]|\\[%,;$ ]|\\(?:text|mbox|frac|sqrt|approx|cdot|times|div|pm|leq|geq|neq)(?![a-zA-Z]))*"
)
_MAX_LENGTH = 100
_MAX_BRACKETS = 8


@dataclass(frozen=True)
class Formula:
    """A formula of a response."""

    text: str
    """Tidied, as it is compared with the right answer."""
    is_parsed: bool
    """It can be taken for mathematics; if not, the search goes on to the next match."""


def latex_matches(text: str) -> list[tuple[int, re.Match[str]]]:
    """The formulas of a text with their precedence, lower first.

    Looked for in the last 1,000 characters only: the patterns take cubic time, and of two matches of the same
    precedence the later one wins.
    """
    if not _MARKS.search(text):
        return []
    start = max(0, len(text) - _TAIL)
    return [(precedence, match) for pattern, precedence in _patterns() for match in pattern.finditer(text, start)]


def read_formula(match: re.Match[str]) -> Formula:
    """What one of `latex_matches` says: a formula, or several that "and", "or" or a comma connect."""
    found = [(name, said) for name, said in match.groupdict().items() if said and "_latex" in name]
    texts = [_tidy(_unboxed(said, only_last=name.endswith("latexBoxed"))) for name, said in found]
    if not texts:
        return Formula("", is_parsed=False)
    is_parsed = [_can_be_parsed(one) for one in texts]
    return Formula(" and ".join(texts), is_parsed=True) if all(is_parsed) else Formula(texts[0], is_parsed=is_parsed[0])


def _unboxed(formula: str, *, only_last: bool) -> str:
    """What stands in a formula's boxes, joined by commas; the formula itself where it has no box.

    Args:
        formula: As written.
        only_last: Only the last box, and those before it that "and", "or" or a comma connects to it.
    """
    contents: list[str] = []
    limit = len(formula)
    for box in reversed(list(_BOX.finditer(formula))):
        start = limit - len(formula[box.end() : limit].lstrip())
        if start == limit:
            break
        end = _closing_brace(formula, start, limit) if formula[start] == "{" else None
        if end is None:
            contents = contents or [formula[start:]]
            break
        if only_last and contents and not _CONNECTION.fullmatch(formula, end + 1, limit):
            break
        contents.append(formula[start + 1 : end].strip())
        limit = box.start()
    return ",".join(reversed(contents)) if contents else formula


def _closing_brace(text: str, opening: int, limit: int) -> int | None:
    """Where the brace that opens at a position is closed, before a limit."""
    depth = 0
    for position in range(opening, limit):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if not depth:
            return position
    return None


def _tidy(formula: str) -> str:
    """A formula without mark-up, the links of a chain of equations but the last, and its unit in words."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex

    nothing = NormalizationConfig(
        basic_latex=False, units=False, malformed_operators=False, nits=False, boxed="none", equations=False
    )
    text = normalize_latex(formula, replace(nothing, basic_latex=True))
    links = _CHAIN.split(text)
    if len(links) > 2 and "," not in text and ";" not in text:
        text = links[-1]
    text = _UNIT.sub("", text).strip() or text
    return normalize_latex(text, replace(nothing, malformed_operators=True, nits=True))


def _can_be_parsed(formula: str) -> bool:
    """Whether latex2sympy takes a formula; what is not simple it is not asked about, and counts as not taken."""
    num_brackets = sum(map(formula.count, "([{"))
    if len(formula) > _MAX_LENGTH or num_brackets > _MAX_BRACKETS or not _SIMPLE.fullmatch(formula):
        return False
    from latex2sympy2_extended.latex2sympy2 import latex2sympy

    try:
        latex2sympy(formula, is_real=True, convert_degrees=False, normalization_config=None)
    except Exception:  # of its grammar, of sympy, of Python's numbers: every kind means "no"
        return False
    return True


@cache
def _patterns() -> list[tuple[re.Pattern[str], int]]:
    # Late: this loads sympy and the parser, which most responses never need.
    from math_verify.parser import LatexExtractionConfig, get_extraction_regexes

    [(patterns, _)] = get_extraction_regexes([LatexExtractionConfig()])
    return patterns
