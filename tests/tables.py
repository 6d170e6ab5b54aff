"""Tables in the schemas of the real data sets, made from rendered scenes and a photograph that matplotlib ships.

`make_table` writes one; `rows_of` gives its rows, to be spoiled or counted first:

    rows = rows_of("sat", 8)
    rows[3]["correct_answer"] = "none of them"
    folder = write_table("sat", tmp_path, rows)

To add a schema, add a function that makes row number n to `_ROW` and the files that the hub has to `_FILES`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from visual_r1.datasets.spatial import Spatial
from visual_r1.organisms.questions import Question

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
"""A photograph of 512 x 600 pixels."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMAS = {
    "sat": pa.schema(
        [
            ("image_bytes", pa.list_(pa.binary())),
            ("question", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("question_type", pa.string()),
            ("correct_answer", pa.string()),
        ]
    ),
    "cvbench": pa.schema(
        [
            ("idx", pa.int64()),
            ("type", pa.string()),
            ("task", pa.string()),
            ("image", _IMAGE),
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.string()),
            ("prompt", pa.string()),
            ("filename", pa.string()),
            ("source", pa.string()),
            ("source_dataset", pa.string()),
        ]
    ),
}
_FILES = {
    "sat": ("SAT_train.parquet", "SAT_static.parquet", "SAT_val.parquet", "SAT_test.parquet"),
    "cvbench": ("test_2d.parquet", "test_3d.parquet"),
}
"""Under the hub's names; SAT's hold the same rows each, CV-Bench's a half each."""
SCHEMAS = tuple(_SCHEMAS)


def make_table(schema: str, folder: Path, *, num_rows: int = 8) -> Path:
    """Writes a table as the hub has it, and returns its folder."""
    return write_table(schema, folder, rows_of(schema, num_rows))


def rows_of(schema: str, num_rows: int) -> list[dict[str, Any]]:
    """Rows that are all good; images repeat after 32 rows."""
    return [_ROW[schema](number) for number in range(num_rows)]


def write_table(schema: str, folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows into the files that the hub has, and returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _FILES[schema]
    half = (len(rows) + 1) // 2
    parts = [rows] * len(files) if schema == "sat" else [rows[:half], rows[half:]]
    for file, part in zip(files, parts, strict=True):
        write_parquet(folder / file, part, schema=_SCHEMAS[schema])
    return folder


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], *, schema: pa.Schema | None = None) -> Path:
    """Writes all rows as one row group, as SAT's files are."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pa.parquet.write_table(table, path, row_group_size=max(1, len(rows)))
    return path


@functools.cache
def photograph(number: int, *, side: int = 96) -> bytes:
    """A JPEG file: the photograph, cut somewhere else for each number."""
    with Image.open(PHOTOGRAPH) as image:
        left, top = (number * 37) % (image.width - side), (number * 53) % (image.height - side)
        return encoded(image.crop((left, top, left + side, top + side)), "JPEG")


@functools.cache
def scene(number: int) -> tuple[bytes, Question]:
    """A PNG file of a rendered scene, and a question about it."""
    drawn, question = Spatial(split="train", size=number + 1).draw(number)
    return encoded(drawn.render(), "PNG"), question


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _sat_row(number: int) -> dict[str, Any]:
    image, question = scene(number % 32)
    images = [image, photograph(number % 32)] if number % 4 == 3 else [image]
    # A comma within a choice, as SAT has them: "left, and then right".
    choices = [f"{choice}, as seen here" if number % 4 == 2 else choice for choice in question.choices]
    return {
        "image_bytes": images,
        "question": question.stem,
        "answers": choices,
        "question_type": "other" if len(images) == 1 else "obj_movement",
        "correct_answer": choices[question.answer],
    }


def _cvbench_row(number: int) -> dict[str, Any]:
    image, question = scene(number % 32)
    is_2d = question.category in ("Count", "Relation")
    if number % 8 == 0:
        image = photograph(number % 32)
    return {
        "idx": number,
        "type": "2D" if is_2d else "3D",
        "task": question.category,
        "image": {"bytes": image, "path": None},
        "question": question.stem,
        "choices": list(question.choices),
        "answer": f"({'ABCD'[question.answer]})",
        "prompt": question.text,
        "filename": f"img/{number}.png",
        "source": ("ADE20K", "COCO")[number % 2] if is_2d else "Omni3D",
        "source_dataset": "made for a test",
    }


_ROW: dict[str, Callable[[int], dict[str, Any]]] = {"sat": _sat_row, "cvbench": _cvbench_row}
