"""Cambrian: CV-Bench's own average over the collections that its images come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visual_r1.examples import Example
from visual_r1.scoring.scorer import Part
from visual_r1.scoring.strict import Strict

_DIMENSIONS = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}
_SUBSETS = tuple(subset for subsets in _DIMENSIONS.values() for subset in subsets)


@dataclass(frozen=True)
class Cambrian(Strict):
    """The strict rule's verdicts, averaged as CV-Bench's authors do: each collection counts, whatever its size.

    2D is the mean of the accuracies on ADE20K and on COCO, 3D the accuracy on Omni3D, the whole the mean of 2D and 3D.
    Over some of the items (a category), the collections that are among them share the weight in the same way. Source:
    the card of nyu-visionx/CV-Bench ("CV-Bench Accuracy") and Cambrian-1, arXiv 2406.16860, appendix C; VLMEvalKit
    averages its CV-Bench-2D alike (open-compass/VLMEvalKit#909).
    """

    def parts(self, examples: Sequence[Example]) -> tuple[Part, ...]:
        present = [
            [indices for subset in subsets if (indices := _of(subset, examples))] for subsets in _DIMENSIONS.values()
        ]
        present = [dimension for dimension in present if dimension]
        return tuple(Part(1 / len(present) / len(dimension), indices) for dimension in present for indices in dimension)

    def problem(self, examples: Sequence[Example]) -> str | None:
        foreign = next((one for one in examples if one.subset not in _SUBSETS), None)
        if foreign is not None:
            subset = "no subset" if foreign.subset is None else f"subset {foreign.subset!r}"
            return f"{foreign.id} has {subset}, and the average is over {', '.join(_SUBSETS)}"
        if missing := [subset for subset in _SUBSETS if not _of(subset, examples)]:
            return f"no item is from {' or '.join(missing)}"
        return None

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        return {**_DIMENSIONS, **{subset: (subset,) for subset in _DIMENSIONS["2D"]}}


def _of(subset: str, examples: Sequence[Example]) -> tuple[int, ...]:
    return tuple(index for index, example in enumerate(examples) if example.subset == subset)
