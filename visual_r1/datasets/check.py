"""Reads every example of a data set, pixels and all, and collects what is wrong instead of stopping at it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL.Image import Image
from tqdm.auto import tqdm

from visual_r1.datasets.adapter import BadRow, TableExamples
from visual_r1.examples import Example


@dataclass(kw_only=True)
class Findings:
    """What a data set holds, counted while it is read, so that no more than counts is kept in memory."""

    name: str
    bad: list[BadRow]
    num_good: int = 0
    seconds: float = 0.0
    categories: Counter[str] = field(default_factory=Counter)
    letters: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each letter is right, by category."""
    words: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each answer's words are right, by category."""
    num_choices: Counter[int] = field(default_factory=Counter)
    num_images: Counter[int] = field(default_factory=Counter)
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Widths and heights in pixels."""

    def add(self, example: Example) -> None:
        """Counts an example that can be used."""
        self.num_good += 1
        self.categories[example.category] += 1
        self.letters[example.category, example.solution] += 1
        self.words[example.category, example.solution_text.casefold()] += 1
        self.num_choices[len(example.choices)] += 1
        self.num_images[len(example.images)] += 1
        self.image_sizes.update(image.size for image in example.images)

    @property
    def constant_answer(self) -> float:
        """The accuracy of always giving, in each category, the letter or the words that are most often right there."""
        best: Counter[str] = Counter()
        for counts in (self.letters, self.words):
            for (category, _), count in counts.items():
                best[category] = max(best[category], count)
        return best.total() / self.num_good

    def lines(self) -> list[str]:
        """The summary, for people."""
        num_rows = self.num_good + len(self.bad)
        lines = [f"rows               {num_rows:,}, of them bad: {len(self.bad):,}"]
        if self.num_good:
            lines += [
                f"kinds of question  {_listed(self.categories)}",
                f"choices            {_listed(self.num_choices)}",
                f"images per row     {_listed(self.num_images)}",
                f"image sizes        {self._sizes()}",
                f"constant answer    {self.constant_answer:.1%} right (the most frequent answer of each kind)",
            ]
        return [*lines, f"speed              {num_rows / max(self.seconds, 1e-9):,.0f} rows a second"]

    def _sizes(self) -> str:
        ordered = sorted(self.image_sizes, key=lambda size: size[0] * size[1])
        if not ordered:
            return "none"
        middle, seen = (self.image_sizes.total() + 1) // 2, 0
        for median in ordered:
            seen += self.image_sizes[median]
            if seen >= middle:
                break
        named = (("min", ordered[0]), ("median", median), ("max", ordered[-1]))
        return ", ".join(f"{name} {width} x {height}" for name, (width, height) in named)


def check(examples: Sequence[Example], *, name: str) -> Findings:
    """Reads every example once, with a progress bar.

    Args:
        examples: Any data set; a `TableExamples` that skips bad rows adds those that it left out.
        name: What the progress bar and the findings call it.
    """
    findings = Findings(name=name, bad=list(examples.bad) if isinstance(examples, TableExamples) else [])
    seen: set[int] = set()
    started = time.perf_counter()
    for index in tqdm(range(len(examples)), desc=name, unit="row", mininterval=1):
        # The data set may be a user's own, and a check that stops at the first surprise finds one a day.
        try:
            example = examples[index]
            _check_example(example)
        except Exception as error:
            findings.bad.append(_bad_row(error, default_id=f"{name}[{index}]"))
            continue
        if hash(example.id) in seen:
            findings.bad.append(BadRow(id=example.id, reason="another row has the same id"))
            continue
        seen.add(hash(example.id))
        findings.add(example)
    findings.seconds = time.perf_counter() - started
    return findings


def _check_example(example: Example) -> None:
    if not example.images:
        raise ValueError(f"{example.id}: has no image")
    for image in example.images:
        if not isinstance(image, Image) or image.mode != "RGB":
            raise ValueError(f"{example.id}: an image is {getattr(image, 'mode', type(image).__name__)}, expected RGB")
        image.load()


def _bad_row(error: Exception, *, default_id: str) -> BadRow:
    message = " ".join(str(error).split())
    row_id, colon, reason = message.partition(": ")
    if isinstance(error, ValueError) and colon and " " not in row_id:
        return BadRow(id=row_id, reason=reason)
    return BadRow(
        id=default_id, reason=message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
    )


def _listed(counts: Counter) -> str:
    shown = [f"{value}: {count:,}" for value, count in counts.most_common(20)]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
