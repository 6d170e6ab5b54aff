"""Which answer does a piece of reasoning stand at? A rule of form: what it cannot tell is counted, not guessed.

The text is taken sentence by sentence (``.``, ``!``, ``?``, ``;`` and line ends). A sentence states a choice when it
is, from its first word to its last, one of

1. *the answer is* NAME, *my answer:* NAME, *it is* NAME, *that must be* NAME;
2. *there are* NAME, also with a rest that only repeats words of the question: *there are 3 circles in the image*;
3. NAME *is* what the question asks for: the word that follows "is" or "are" in the question, and a rest that only
   repeats its words (question: *which object is closer to the camera*, sentence: *the first is closer*), or NAME *is
   the answer*, *is right*, *is correct*;

after no more than lead-in words such as *so*, *therefore*, *I think*, *I see*. NAME is a choice's letter as a capital,
its words, both where they agree, or *the first* for the first of the choices. A sentence that asks, denies or hedges
(*not*, *or*, *might*, *if* ...) states nothing. The last sentence that states a choice counts, unless a later one that
denies or hedges names a choice: then the text stands at none. So it does after *that is right* or *yes, it is right*
where "right" is a choice: it may be a verdict on what was said before.

Nothing else is read. *The cup is above the plate* may say that the cup is above or that the plate is below, depending
on what was asked, and states nothing here. Other models have other ways to say where they stand; how many texts state
nothing is therefore a number of its own, and ``visual-r1 probe`` asks the model instead of reading it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase

_SENTENCE = re.compile(r"[.!?;]+(?=\s|$)|\n")
_MAX_LENGTH = 300
"""Characters of a sentence that is read; a longer one states nothing."""
_LEAD = (
    r"(?:(?:so|thus|therefore|hence|then|and|now|well|ok|okay|yes|overall|finally|in conclusion|i think|i believe"
    r"|i guess|i see|i would say|i'd say|this means|that means|which means|we can see|i can see)"
    r"(?:,?\s+that)?[,:]?\s+)*"
)
_BE = r"(?:\s+is|'s|\s+are|\s+must\s+be|\s+should\s+be|\s+would\s+be)"
_DENIES = re.compile(
    r"\b(?:not|no|never|neither|nor|either|or|maybe|perhaps|possibly|might|may|could|can't|cannot|if|unless|whether"
    r"|unsure|unclear|wrong|incorrect)\b|n't\b",
    re.IGNORECASE,
)
_VERDICTS = ("right", "correct")
_VERDICT = re.compile(
    rf"{_LEAD}(?:that|this){_BE}\s+(?:{'|'.join(_VERDICTS)})|(?:yes|ok|okay)\b.*\s(?:it|that|this){_BE}\s+(?:{'|'.join(_VERDICTS)})",
    re.IGNORECASE,
)
"""A sentence that says of another that it holds, unless a choice has this name."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_IS_RIGHT = r"(?:(?:the|my)\s+)?(?:(?:right|correct|final|best)(?:\s+(?:answer|choice|option|one))?|answer)"
_ANSWER = r"(?:(?:the|my)\s+)?(?:(?:right|correct|final|best)\s+)?(?:answer|choice|option)"
_STOPWORDS = frozenset(
    ("the", "a", "an", "in", "on", "at", "of", "to", "there", "it", "this", "that", "with", "located")
)


def stated_answer(text: str, *, question: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that a text stands at by this module's rule; None when it states none.

    Args:
        text: reasoning, such as what stands before the first reflection.
        question: what was asked, with or without the list of choices.
        choices: their words, in the order of their letters.
    """
    rule = _rule(question, tuple(choices))
    standing = None
    for piece, end in _sentences(text):
        if len(piece) > _MAX_LENGTH or end == "?":
            continue
        if rule.may_be_verdict(piece):
            standing = None
        elif not rule.denies(piece):
            standing = rule.stated(piece) or standing
        elif rule.names(piece):
            standing = None
    return standing


def _sentences(text: str) -> list[tuple[str, str]]:
    """Each sentence without outer blanks and commas, with the first character of what ends it."""
    found, start = [], 0
    for match in _SENTENCE.finditer(text):
        found.append((text[start : match.start()], match[0][0]))
        start = match.end()
    found.append((text[start:], ""))
    return [(" ".join(piece.split()).strip(" ,:-\u2013\u2014"), end) for piece, end in found if piece.strip()]


@dataclass(frozen=True)
class _Rule:
    """The forms for one question."""

    letters: str
    named: re.Pattern[str]
    """Any choice's letter, words or place, anywhere."""
    forms: tuple[tuple[re.Pattern[str], ...], ...]
    """The whole sentences that state each choice."""
    question_words: frozenset[str]
    has_verdict: bool
    """A choice is called as a verdict is: "right"."""

    def names(self, sentence: str) -> bool:
        return bool(self.named.search(sentence))

    def denies(self, sentence: str) -> bool:
        """Whether it denies or hedges, apart from what choices are called: "no" may be one."""
        return bool(_DENIES.search(self.named.sub(" ", sentence)))

    def may_be_verdict(self, sentence: str) -> bool:
        """Whether it may say a choice, or that what was said before is right."""
        return self.has_verdict and bool(_VERDICT.fullmatch(sentence))

    def stated(self, sentence: str) -> str | None:
        found = [
            letter for letter, forms in zip(self.letters, self.forms, strict=True) if self._matches(forms, sentence)
        ]
        return found[0] if len(found) == 1 else None

    def _matches(self, forms: Sequence[re.Pattern[str]], sentence: str) -> bool:
        matches = (form.fullmatch(sentence) for form in forms)
        return any(match and self._is_from_question(match.groupdict().get("rest") or "") for match in matches)

    def _is_from_question(self, rest: str) -> bool:
        """Whether every word was in the question, and none of them is a choice's."""
        return not self.names(rest) and set(_words(rest)) <= self.question_words


@lru_cache(maxsize=4096)
def _rule(question: str, choices: tuple[str, ...]) -> _Rule:
    letters = ascii_uppercase[: len(choices)]
    asked = re.split(r"\n\s*\(A\)|(?<=[.?!])\s*Select from", question, maxsplit=1)[0]
    wanted = {
        match[1].lower()
        for match in re.finditer(r"\b(?:is|are)\s+(?:the\s+)?([a-z]+)", asked, re.IGNORECASE)
        if match[1].lower() not in _STOPWORDS
    }
    names, forms = [], []
    for number, (letter, choice) in enumerate(zip(letters, choices, strict=True)):
        words = r"\s+".join(map(re.escape, choice.strip().removesuffix(".").strip().split()))
        wordy = rf"(?i:(?:the\s+|an?\s+)?{words})" if words else "(?!)"
        ordinal = rf"(?i:the\s+{_ORDINALS[number]}(?:\s+(?:one|choice|option))?)" if number < len(_ORDINALS) else "(?!)"
        lettered = rf"(?:(?i:option|choice|answer)\s+)?(?:(?i:\({letter}\))|\b{letter}\b)(?:[:,]?\s+{wordy})?"
        name = rf"(?:{lettered}|{wordy}|{ordinal})"
        names.append(rf"(?i:\({letter}\))|\b{letter}\b|(?<!\w){wordy}(?!\w)|(?<!\w){ordinal}(?!\w)")
        asked_for = rf"(?:(?i:the)\s+)?(?i:{'|'.join(sorted(map(re.escape, wanted)))})" if wanted else "(?!)"
        forms.append(
            tuple(
                re.compile(form)
                for form in (
                    rf"(?i:{_LEAD})(?i:{_ANSWER})(?:(?i:{_BE}):?|:)\s+{name}",
                    rf"(?i:{_LEAD})(?i:it|that|this)(?i:{_BE})\s+{name}",
                    rf"(?i:{_LEAD})(?i:there)(?i:{_BE})\s+{name}(?P<rest>(?:\s.*)?)",
                    rf"(?i:{_LEAD}){name}\s+(?i:is|are)\s+{asked_for}(?P<rest>(?:\s.*)?)",
                    rf"(?i:{_LEAD}){name}\s+(?i:is|are)\s+(?i:{_IS_RIGHT})",
                )
            )
        )
    has_verdict = any(word in _VERDICTS for choice in choices for word in _words(choice))
    return _Rule(letters, re.compile("|".join(names)), tuple(forms), frozenset(_words(asked)), has_verdict)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.casefold())
