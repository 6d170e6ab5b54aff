"""VSR (cambridgeltl/vsr_random and vsr_zeroshot, arXiv 2205.00363): statements about COCO's photographs, true or false.

Each repository holds ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``: 7,680, 1,097 and 2,195 rows of vsr_random,
3,489, 340 and 1,222 of vsr_zeroshot. A row has ``image`` (a file name), ``image_link`` (its place in COCO, train2017 or
val2017), ``caption``, ``label`` (1 is true), ``relation``, and who voted. The images are not there; COCO has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from visual_r1.datasets.adapter import Item, TableExamples, text
from visual_r1.datasets.rows import Rows, open_rows

SPLITS = ("train", "dev", "test")
COLUMNS = ("image", "image_link", "caption", "label", "relation")
_FOLDERS = ("train2017", "val2017")
_COCO = "http://images.cocodataset.org/zips"

# The file analysis_scripts/rel_meta_category_dict.txt of cambridgeltl/visual-spatial-reasoning. It names "among" twice;
# there, as here, the later line holds.
_RELATIONS = {
    "Adjacency": (
        "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to, "
        "at the back of, ahead of, against, at the edge of"
    ),
    "Directional": (
        "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across, across from, "
        "through, down from"
    ),
    "Orientation": "facing, facing away from, parallel to, perpendicular to",
    "Projective": (
        "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over, "
        "in the middle of"
    ),
    "Proximity": "by, close to, near, far from, far away from",
    "Topological": (
        "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, surrounding, among, "
        "consists of, out of, between, inside, outside, touching"
    ),
    "Unallocated": "beyond, next to, opposite to, after, among, enclosed by",
}
CATEGORIES = {relation: category for category, names in _RELATIONS.items() for relation in names.split(", ")}
"""The category of each relation, seven in all, after the paper."""


class Vsr(TableExamples):
    """VSR's statements as questions, in the wording of VisualThinker-R1-Zero's development fork, grammar included.

    Args:
        path: The hub id, a folder that holds the hub's files, or one file.
        split: "train", "dev" or "test".
        image_root: The folder of COCO's images, all in it or in its folders train2017 and val2017.
        size: How many examples; None for all.
        bad_rows: "error" or "skip": see `TableExamples`. "skip" also leaves out the rows whose image is missing.

    Raises:
        ValueError: an unknown split, no image folder, missing images, a table that cannot be read, or a bad row.
    """

    def __init__(
        self, *, path: str, split: str, image_root: str | None, size: int | None = None, bad_rows: str = "error"
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"vsr: no split {split!r}, expected one of {', '.join(SPLITS)}")
        if image_root is None:
            raise ValueError(
                f"vsr: image_root is not set, and {path} holds links, not images: unzip {_COCO}/train2017.zip and "
                "val2017.zip into one folder and name it with image_root"
            )
        self._root = Path(image_root).expanduser()
        rows = open_rows(path, data_files=[f"{split}.jsonl"])
        if bad_rows == "error":
            self._find_images(rows, size)
        super().__init__(rows, name=f"vsr/{split}", columns=COLUMNS, size=size, bad_rows=bad_rows)

    def item(self, row: Mapping[str, Any]) -> Item:
        if row["label"] not in (0, 1):
            raise ValueError(f"label is {row['label']!r}, expected 0 or 1")
        return Item(
            choices=("True", "False"),
            answer=0 if row["label"] == 1 else 1,
            # "congruent", once in dev, is in no category of the paper's.
            category=CATEGORIES.get(text(row, "relation"), "Unallocated"),
        )

    def question(self, row: Mapping[str, Any], choices: Sequence[str]) -> str:
        return (
            f'Please analyze the provided image. Does the statement "{text(row, "caption")}" accurately describes what '
            f"you see? Choose from (A) {choices[0]} or (B) {choices[1]}."
        )

    def images(self, row: Mapping[str, Any]) -> Any:
        return str(self._place(text(row, "image")))

    def _place(self, name: str) -> Path:
        """Where an image lies, or where it would if it were there."""
        places = [self._root / name, *(self._root / folder / name for folder in _FOLDERS)]
        return next((place for place in places if place.is_file()), places[0])

    def _find_images(self, rows: Rows, size: int | None) -> None:
        """Raises ValueError if images are missing: how many, the first one's name, and where to get them."""
        wanted = {
            row["image"]: row["image_link"]
            for row in islice(rows.outlines(("image", "image_link")), size)
            if isinstance(row["image"], str)  # else the row itself is bad, and says so
        }
        missing = [name for name in wanted if not self._place(name).is_file()]
        if not missing:
            return
        folders = [folder for folder in _FOLDERS if any(f"/{folder}/" in str(wanted[name]) for name in missing)]
        zips = " and ".join(f"{_COCO}/{folder}.zip" for folder in folders or _FOLDERS)
        raise ValueError(
            f"{rows.origin}: {len(missing)} of {len(wanted)} images are not in {self._root}, the first is "
            f"{missing[0]}: unzip {zips} there, or set image_root to where they are"
        )
