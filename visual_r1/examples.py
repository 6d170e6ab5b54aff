"""The nouns of the project: an example and a rollout. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import ascii_uppercase

from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Example:
    """One multiple-choice question about one or more images.

    Raises:
        ValueError: the row cannot be scored (empty question, fewer than two choices, two equal choices, more choices
            than letters, or a solution that is none of them). A wrong row must stop the run here; later it could only
            look like a question that the policy never learns.
    """

    id: str
    """Unique within its dataset, for example ``spatial/train/17``."""
    images: tuple[Image, ...]
    question: str
    """What the policy is asked, choices included, exactly as it stands in the prompt."""
    choices: tuple[str, ...]
    solution: str
    """The letter of the right choice: "A" for ``choices[0]``."""
    category: str
    """The kind of question, for accuracy by category: "Count", "Relation", "Depth", "Distance"."""
    solution_as_written: str | None = None
    """How the data writes the solution, for SFT to imitate: SAT by the choice's words; None stands for its letter."""
    subset: str | None = None
    """The collection an item comes from, where a benchmark averages by it: "ADE20K", "COCO", "Omni3D" in CV-Bench."""
    thought: str | None = field(default=None, repr=False)
    """A reasoning that ends at the solution, for SFT to imitate, without tags. A data set has one for all of its
    examples or for none."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError(f"{self.id}: the question is empty")
        if not 2 <= len(self.choices) <= len(ascii_uppercase):
            raise ValueError(f"{self.id}: {len(self.choices)} choices, expected 2 to {len(ascii_uppercase)}")
        if len({choice.strip().casefold() for choice in self.choices}) < len(self.choices):
            raise ValueError(f"{self.id}: two choices are equal: {list(self.choices)}")
        if self.solution not in self.letters:
            raise ValueError(f"{self.id}: solution {self.solution!r} is none of {list(self.letters)}")

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the choices, in order."""
        return tuple(ascii_uppercase[: len(self.choices)])

    @property
    def solution_text(self) -> str:
        """The words of the right choice."""
        return self.choices[self.letters.index(self.solution)]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """An example with one completion of the policy."""

    example: Example
    completion: str
    """What the policy wrote after the prompt, end token removed."""
    num_tokens: int
    """Tokens of the completion, the end token included."""
    is_truncated: bool
    """The length limit cut the completion: no end token was sampled."""
    prompt_opens_think: bool
    """The prompt ends in ``<think>``, as the paper's base prompt does, so the completion starts inside the thought."""
    num_thought_tokens: int | None = None
    """Tokens before the first ``</think>``; None when the thought was never closed."""

    @property
    def text(self) -> str:
        """The completion with the ``<think>`` that the prompt may have opened for it."""
        return f"<think>{self.completion}" if self.prompt_opens_think else self.completion
