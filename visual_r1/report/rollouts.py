"""The rollout browser's data: completions of a run in pieces, bounded in number, and each image once."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from visual_r1.datasets.adapter import TableExamples
from visual_r1.examples import Example
from visual_r1.metrics.reflection import Reflection
from visual_r1.prompts import prompt_style
from visual_r1.report.runs import LeftOut, Run

if TYPE_CHECKING:
    import pyarrow

MAX_COMPLETIONS = 10_000
MAX_CHARACTERS = 10_000_000
"""Of all completions together; packed, they take about an eighth."""
MAX_STEPS = 16
"""Of a run; the first and the last step on record are among them."""
MAX_IMAGE_BYTES = 2_000_000
MAX_IMAGE_SIDE = 320
_STEP_FILE = re.compile(r"step_(\d+)\.parquet")
_TAGS = re.compile(r"(</?think>|</?answer>)")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The rollouts that a run has on record of one step."""

    step: int
    rows: Sequence[Mapping[str, Any]]

    def of(self, source: str) -> list[Mapping[str, Any]]:
        """Those of the ``probe`` or of ``train``."""
        return [row for row in self.rows if row["source"] == source]


@dataclass(frozen=True, kw_only=True)
class Browsed:
    """What the browser shows: plain data for JSON."""

    runs: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    images: list[str]
    """As data URLs."""
    left_out: tuple[LeftOut, ...]


def read_sampled(run: Run) -> tuple[list[Sampled], list[LeftOut]]:
    """A run's rollouts by step, and the files that could not be read."""
    import pyarrow.parquet

    found, left_out = [], []
    for file in sorted(run.folder.completions.glob("step_*.parquet")):
        match = _STEP_FILE.fullmatch(file.name)
        if match is None:
            continue
        try:
            table = pyarrow.parquet.read_table(file)
            why = _unfit(table)
        except (ValueError, OSError) as error:
            why = " ".join(str(error).split())[:200]
        if why is not None:
            left_out.append(LeftOut(where=str(run.folder.path), what=f"completions/{file.name}", why=why))
            continue
        found.append(Sampled(step=int(match[1]), rows=table.to_pylist()))
    return found, left_out


def _unfit(table: pyarrow.Table) -> str | None:
    """Why a table holds no rollouts that can be shown; None if it does."""
    from pyarrow import types

    needed = {
        **dict.fromkeys(("source", "example_id", "completion"), types.is_string),
        **{"correct": types.is_boolean, "num_tokens": types.is_integer},
    }
    if missing := sorted(needed.keys() - set(table.column_names)):
        return f"an older version wrote it, without {', '.join(missing)}"
    others = {"advantage": types.is_floating, "group": types.is_integer, "keyword_hits": types.is_list}
    others |= {name: types.is_floating for name in table.column_names if name.startswith("score/")}
    for field in table.schema:
        is_fit, num_null = (needed | others).get(field.name), table.column(field.name).null_count
        if field.name in needed and num_null:
            return f"{num_null} of its {table.num_rows} rows have no {field.name}"
        # A column in which nothing is known has no kind.
        if is_fit is not None and not is_fit(field.type) and num_null < table.num_rows:
            return f"its column {field.name} holds {field.type}"
    return None


def browse(
    sampled: Sequence[tuple[Run, Sequence[Sampled]]],
    *,
    examples_of: Callable[[Mapping[str, Any]], Sequence[Example]],
) -> Browsed:
    """Chooses what of the runs' rollouts is shown, takes it to pieces, and fetches the images.

    Of the probe every k-th example is kept and followed through all steps that are shown; of training, of each such
    step, every k-th group, whole.

    Args:
        sampled: runs with what `read_sampled` gave.
        examples_of: makes the data set that a run's ``dataset.train`` or ``dataset.probe`` names; raises ValueError,
            OSError or ImportError where it is not on this machine.
    """
    shown = [(run, [steps[index] for index in _evenly(len(steps), MAX_STEPS)]) for run, steps in sampled if steps]
    left_out = [
        LeftOut(
            where=str(run.folder.path),
            what=f"rollouts of {len(steps) - MAX_STEPS} steps",
            why=f"the browser shows {MAX_STEPS} of {len(steps)} steps, evenly spread",
        )
        for run, steps in sampled
        if len(steps) > MAX_STEPS
    ]
    stride = _stride([row for _, steps in shown for step in steps for row in step.rows])
    examples = _Examples(examples_of)
    runs = [_of_run(run, steps, stride=stride, examples=examples) for run, steps in shown]
    if stride > 1:
        why = f"to bound the file: one of {stride}, evenly spread; completions/ of the run has all of them"
        left_out.append(LeftOut(where="the rollout browser", what="probe examples and training groups", why=why))
    return Browsed(
        runs=runs,
        examples=examples.shown,
        images=examples.images,
        left_out=(*left_out, *examples.left_out, *examples.without_images()),
    )


def pieces(completion: str, *, opens_think: bool, reflection: Reflection | None) -> list[list[str]]:
    """A completion cut into ``[kind, text]``; put together again, the texts are the completion.

    Kinds: ``t`` thought, ``a`` answer, ``g`` tag, ``o`` outside of both; with an ``r`` behind it, a reflecting phrase.
    """
    kind = "t" if opens_think else "o"
    found: list[list[str]] = []
    for part in _TAGS.split(completion):
        if _TAGS.fullmatch(part):
            found.append(["g", part])
            kind = {"<think>": "t", "<answer>": "a"}.get(part, "o")
        elif part:
            found += _marked(part, kind, reflection)
    return found


def _marked(text: str, kind: str, reflection: Reflection | None) -> Iterator[list[str]]:
    end = 0
    for start, stop in reflection.spans(text) if reflection else ():
        if start > end:
            yield [kind, text[end:start]]
        yield [f"{kind}r", text[start:stop]]
        end = stop
    if end < len(text):
        yield [kind, text[end:]]


def thumbnail(image: Image) -> str:
    """An image of at most `MAX_IMAGE_SIDE` pixels a side, as a data URL; a flat drawing loses nothing."""
    small = image.convert("RGB")
    small.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    exact, lossy = (_webp(small, **options) for options in ({"lossless": True}, {"quality": 82}))
    # A drawing keeps its edges for about the same; a photograph takes many times as much.
    data = exact if len(exact) <= 1.5 * len(lossy) else lossy
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _webp(image: Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="webp", **options)
    return buffer.getvalue()


class _Examples:
    """The examples that completions refer to, each once, with its images as far as there is room."""

    def __init__(self, examples_of: Callable[[Mapping[str, Any]], Sequence[Example]]) -> None:
        self._examples_of = examples_of
        self._sets: dict[str, Sequence[Example] | None] = {}
        self._indices: dict[str, dict[str, int]] = {}
        self._unfound: dict[str, list[str]] = {}
        self._places: dict[tuple[str, str], int] = {}
        self._num_bytes = 0
        self.shown: list[dict[str, Any]] = []
        self.images: list[str] = []
        self.left_out: list[LeftOut] = []
        self._is_full = False

    def place(self, run: Run, source: str, row: Mapping[str, Any]) -> int:
        """The number of a row's example."""
        node = run.part("dataset").get(source)
        key = (str(node), str(row["example_id"]))
        if key not in self._places:
            self._places[key] = len(self.shown)
            example = self._find(node, str(row["example_id"]))
            self.shown.append(
                {
                    "id": str(row["example_id"]),
                    "category": row.get("category") or "",
                    "question": row.get("question") or "",
                    "solution": row.get("solution") or "",
                    "images": self._thumbnails(example.images if example is not None else ()),
                }
            )
        return self._places[key]

    def _thumbnails(self, images: Iterable[Image]) -> list[int]:
        places = []
        for image in images:
            if self._num_bytes > MAX_IMAGE_BYTES:
                if not self._is_full:
                    self._is_full = True
                    why = f"to bound the file: the first {len(self.images)} are in it, {self._num_bytes / 1e6:.1f} MB"
                    self.left_out.append(LeftOut(where="the rollout browser", what="further images", why=why))
                break
            self.images.append(thumbnail(image))
            self._num_bytes += len(self.images[-1])
            places.append(len(self.images) - 1)
        return places

    def _find(self, node: Any, example_id: str) -> Example | None:
        """The example of that id; None, and counted, where there is none that can be read."""
        examples = self._set(node) if isinstance(node, Mapping) else ()
        if examples is None:  # said once, for all of them
            return None
        try:
            index = self._index(str(node), examples, example_id)
            example = None if index is None else examples[index]
        except (ValueError, OSError, LookupError, TypeError):  # of a damaged configuration, the size may be any thing
            example = None
        if example is None or example.id != example_id:
            name = str(node.get("_target_")) if isinstance(node, Mapping) else "the rollout browser"
            self._unfound.setdefault(name, []).append(example_id)
            return None
        return example

    def _set(self, node: Mapping[str, Any]) -> Sequence[Example] | None:
        key = str(node)
        if key not in self._sets:
            try:
                self._sets[key] = self._examples_of(node)
            except (ValueError, OSError, ImportError) as error:
                self._sets[key] = None
                why = f"its data set cannot be read on this machine: {' '.join(str(error).split())[:200]}"
                self.left_out.append(LeftOut(where=str(node.get("_target_")), what="images of rollouts", why=why))
        return self._sets[key]

    def _index(self, key: str, examples: Sequence[Example], example_id: str) -> int | None:
        """An example's place: a table knows its ids; elsewhere the last number of an id is its place."""
        if isinstance(examples, TableExamples):
            if key not in self._indices:
                self._indices[key] = {name: index for index, name in enumerate(examples.ids())}
            return self._indices[key].get(example_id)
        digits = re.search(r"(\d+)\D*$", example_id)
        return int(digits[1]) if digits is not None and int(digits[1]) < len(examples) else None

    def without_images(self) -> Iterator[LeftOut]:
        """The examples that were looked for in vain, by data set."""
        for name, ids in self._unfound.items():
            shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
            why = f"the data set as it is here has none of that id, or cannot read it: {shown}"
            yield LeftOut(where=name, what=f"images of {len(ids)} example{'s' * (len(ids) > 1)}", why=why)


def _of_run(run: Run, steps: Sequence[Sampled], *, stride: int, examples: _Examples) -> dict[str, Any]:
    opens_think = _opens_think(run)
    reflection = _reflection(run)
    followed: dict[str, str | None] = {}
    shown = []
    for step in steps:
        rows = [("probe", row) for row in step.of("probe")[::stride]]
        training = step.of("train")
        groups = list(dict.fromkeys(row.get("group") for row in training))
        kept = set(groups[::stride])
        rows += [("train", row) for row in training if row.get("group") in kept]
        records = []
        for source, row in rows:
            record = {
                "e": examples.place(run, source, row),
                "s": source[0],
                "p": pieces(row["completion"], opens_think=opens_think, reflection=reflection),
                "c": row.get("choice"),
                "ok": int(bool(row["correct"])),
                "n": row["num_tokens"],
                "k": len(row.get("keyword_hits") or ()),
                "cut": int(bool(row.get("is_truncated"))),
            }
            scores = {
                key.removeprefix("score/"): _rounded(value)
                for key, value in row.items()
                if key.startswith("score/") and value is not None
            }
            if scores:
                record["sc"] = scores
            if row.get("advantage") is not None:
                record |= {"adv": _rounded(row["advantage"]), "g": row.get("group")}
            if source == "probe":
                known = str(row["example_id"])
                if known in followed and followed[known] != row.get("choice"):
                    record["ch"] = 1
                followed[known] = row.get("choice")
            records.append(record)
        shown.append({"step": step.step, "rows": records})
    return {"label": run.label, "steps": shown}


def _stride(rows: Sequence[Mapping[str, Any]]) -> int:
    """One of how many is kept, so that the number and the text of all completions stay in their bounds."""
    num_characters = sum(len(row["completion"]) + len(row.get("question") or "") // 4 for row in rows)
    return max(1, math.ceil(len(rows) / MAX_COMPLETIONS), math.ceil(num_characters / MAX_CHARACTERS))


def _evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _opens_think(run: Run) -> bool:
    model = run.part("model")
    try:
        return prompt_style(str(model.get("style")), str(model.get("prompt"))).opens_think
    except ValueError:
        return model.get("style") == "base"


def _reflection(run: Run) -> Reflection | None:
    phrases = run.part("keywords").get("phrases")
    try:
        return Reflection(phrases=tuple(phrases)) if phrases else None
    except (ValueError, TypeError, AttributeError):
        return None  # a list that today's rules refuse; the hits that were counted stay


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
