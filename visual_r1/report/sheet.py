"""A contact sheet: examples with their images, questions and solutions on one picture, for a look at the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from visual_r1.examples import Example
from visual_r1.files import replacing

_CELL_WIDTH = 280
_IMAGE_HEIGHT = 220
_MARGIN = 16
_LINE_HEIGHT = 17
_INK = "#1A1A1A"
_GREY = "#6E6E6E"
_GREEN = "#00704A"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Line:
    text: str
    colour: str


def contact_sheet(examples: Sequence[Example], path: Path, *, num_columns: int = 4) -> None:
    """Draws examples in rows of `num_columns`, each with id, category, image, question and solution.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not examples:
        raise ValueError("there are no examples to draw")
    font = ImageFont.load_default(size=13)
    captions = [_caption(example, font) for example in examples]
    cells = list(zip(examples, captions, strict=True))
    rows = [cells[start : start + num_columns] for start in range(0, len(cells), num_columns)]
    heights = [_IMAGE_HEIGHT + _LINE_HEIGHT * max(len(caption) for _, caption in row) + 2 * _MARGIN for row in rows]
    num_columns = min(num_columns, len(examples))
    sheet = Image.new("RGB", (num_columns * (_CELL_WIDTH + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, (example, caption) in enumerate(row):
            left = _MARGIN + column * (_CELL_WIDTH + _MARGIN)
            picture = _picture(example.images)
            sheet.paste(picture, (left, top))
            # A white image on a white sheet would have no edge.
            draw.rectangle((left, top, left + picture.width - 1, top + picture.height - 1), outline="#C8C8C8")
            for number, line in enumerate(caption):
                draw.text(
                    (left, top + _IMAGE_HEIGHT + 8 + number * _LINE_HEIGHT), line.text, fill=line.colour, font=font
                )
        top += height
    with replacing(path) as temporary:
        sheet.save(temporary)


def _picture(images: Sequence[Image.Image]) -> Image.Image:
    """The images of an example side by side, as large as a cell allows."""
    if not images:
        return Image.new("RGB", (_CELL_WIDTH, _IMAGE_HEIGHT), "#F2F2F2")
    height = max(image.height for image in images)
    strip = Image.new("RGB", (sum(image.width for image in images), height), "white")
    left = 0
    for image in images:
        strip.paste(image.convert("RGB"), (left, 0))
        left += image.width
    scale = min(_CELL_WIDTH / strip.width, _IMAGE_HEIGHT / strip.height)
    return strip.resize(
        (max(1, round(strip.width * scale)), max(1, round(strip.height * scale))), Image.Resampling.LANCZOS
    )


def _caption(example: Example, font: _Font) -> list[_Line]:
    lines = [_Line(text, _GREY) for text in _wrapped(f"{example.id}  {example.category}", font)]
    lines += [_Line(text, _INK) for text in _wrapped(example.question, font)]
    lines += [_Line(text, _GREEN) for text in _wrapped(f"solution: ({example.solution}) {example.solution_text}", font)]
    return lines


def _wrapped(text: str, font: _Font) -> list[str]:
    """Lines that fit a cell; a word that does not is cut."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > _CELL_WIDTH:
                lines.append(line)
                longer = word
            while font.getlength(longer) > _CELL_WIDTH:
                longer = longer[:-1]
            line = longer
        lines.append(line)
    return lines
