"""How fast tables of 100,000 rows open and are read, and in how much memory, beside ``datasets`` and a loop.

    python -m benchmarks.adapters                      all cases: 10 GB of disk for a while, about 20 minutes
    python -m benchmarks.adapters sat --rows 10000     one case, smaller, printed and not written down

Each figure is taken in a process of its own, whose libraries are imported before the clock starts. The clock is the
processor's, which other work on the machine does not turn. Ours checks every row's text while it opens; the other side
does not. Memory is private memory: without the pages of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from benchmarks.recording import ROOT, facts
from tests.tables import photograph
from visual_r1.files import write_json

RESULTS = ROOT / "benchmarks" / "results" / "adapters.json"
NUM_ROWS = 100_000
NUM_READ = 3_000
"""Rows read at random, images decoded."""
NUM_RUNS = 3
NUM_FILES = 2_000
"""Image files of the tables that hold paths."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A table in one schema, and two ways to read it."""

    file: str
    row: Callable[[int], dict[str, Any]]
    adapter: tuple[str, dict[str, Any]]
    """Class and arguments; an argument that is a `Path` is relative to the table's folder."""
    stored: Callable[[dict[str, Any]], Sequence[Any]]
    """A row's images as the file holds them."""
    is_one_row_group: bool = False

    def write(self, folder: Path, num_rows: int) -> None:
        """Writes the table, and the image files that it names."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            (folder / "val2017").mkdir()
            for number in range(NUM_FILES):
                (folder / "val2017" / f"{number}.jpg").write_bytes(picture(number))
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(self.row(number)) + "\n" for number in range(num_rows))
            return
        schema = pa.Table.from_pylist([self.row(0)]).schema
        parts = (
            pa.Table.from_pylist([self.row(n) for n in range(start, min(start + 1000, num_rows))], schema=schema)
            for start in range(0, num_rows, 1000)
        )
        if self.is_one_row_group:
            pyarrow.parquet.write_table(pa.concat_tables(parts), path, row_group_size=num_rows)
            return
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for part in parts:
                writer.write_table(part, row_group_size=100)

    def ours(self, folder: Path) -> Sequence[Any]:
        """Opens the table with our adapter; indexing decodes."""
        target, arguments = self.adapter
        module, _, name = target.rpartition(".")
        placed = {key: str(folder / value) if isinstance(value, Path) else value for key, value in arguments.items()}
        return getattr(import_module(f"visual_r1.datasets.{module}"), name)(**placed)

    def stock(self, folder: Path) -> Sequence[Any]:
        """Opens the table as the documentation of ``datasets`` shows, and decodes in a loop of one's own."""
        import datasets

        kind = {".parquet": "parquet", ".jsonl": "json"}[Path(self.file).suffix]
        table = datasets.load_dataset(kind, data_files=str(folder / self.file), split="train")
        return Decoded(table, lambda row: [_decode(value, folder) for value in self.stored(row)])


class Decoded(Sequence[Any]):
    """A table whose rows are decoded when they are read."""

    def __init__(self, table: Any, decode: Callable[[dict[str, Any]], Any]) -> None:
        self._table, self._decode = table, decode

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._decode(self._table[index])


def _decode(value: Any, folder: Path) -> Image.Image:
    stored = value["bytes"] if isinstance(value, dict) else value
    with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else folder / stored) as image:
        return image.convert("RGB")


def picture(number: int) -> bytes:
    """A JPEG file of 320 x 320 pixels that no other row has; SAT's take 29 kB each."""
    # What follows a JPEG's end is ignored; without it parquet would store equal images once.
    return photograph(number % 64, side=320) + number.to_bytes(12_000, "big")


def lettered(number: int) -> dict[str, Any]:
    """The text columns of CV-Bench and BLINK."""
    question = f"Is chair {number} left or right of the table?"
    return {
        "idx": number,
        "question": question,
        "choices": ["left", "right"],
        "answer": "(A)",
        "prompt": f"{question} Select from the following choices.\n(A) left\n(B) right",
    }


def stored_picture(number: int) -> dict[str, Any]:
    """An image as ``datasets`` stores it."""
    return {"bytes": picture(number), "path": None}


CASES = {
    "sat": Case(
        file="SAT_static.parquet",
        is_one_row_group=True,  # as the real file is
        row=lambda number: {
            "image_bytes": [picture(number)],
            "question": f"Is chair {number} left or right of the table?",
            "answers": ["left", "right, near the wall"],
            "question_type": "other",
            "correct_answer": "left",
        },
        adapter=("sat.Sat", {"path": Path(), "split": "static"}),
        stored=lambda row: row["image_bytes"],
    ),
    "cvbench": Case(
        file="test_2d.parquet",
        row=lambda number: {
            **lettered(number),
            "image": stored_picture(number),
            "task": "Relation",
            "source": ("ADE20K", "COCO")[number % 2],
        },
        adapter=("cvbench.CVBench", {"path": Path("test_2d.parquet")}),
        stored=lambda row: [row["image"]],
    ),
    "blink": Case(
        file="Relative_Depth/val-00000-of-00001.parquet",
        row=lambda number: {
            **lettered(number),
            "image_1": stored_picture(number),
            # The first row has four images, so that the columns' types can be told from it.
            **{f"image_{other}": None if number else stored_picture(0) for other in (2, 3, 4)},
        },
        adapter=("blink.Blink", {"path": Path(), "tasks": ["Relative_Depth"]}),
        stored=lambda row: [row["image_1"]],
    ),
    "vsr": Case(
        file="test.jsonl",
        row=lambda number: {
            "image": f"{number % NUM_FILES}.jpg",
            "image_link": f"http://images.cocodataset.org/val2017/{number % NUM_FILES}.jpg",
            "caption": f"The cat {number} is left of the bus.",
            "label": number % 2,
            "relation": "left of",
        },
        adapter=("vsr.Vsr", {"path": Path(), "split": "test", "image_root": Path()}),
        stored=lambda row: [f"val2017/{row['image']}"],
    ),
    "table (parquet)": Case(
        file="table.parquet",
        row=lambda number: {
            "images": [stored_picture(number)],
            "problem": f"<image>{lettered(number)['prompt']}",
            "answer": "A",
        },
        adapter=("table.Table", {"path": Path("table.parquet"), "layout": "easyr1"}),
        stored=lambda row: row["images"],
    ),
    "table (JSONL)": Case(
        file="table.jsonl",
        row=lambda number: {
            "id": f"mine/{number}",
            "images": f"val2017/{number % NUM_FILES}.jpg",
            "question": lettered(number)["prompt"],
            "solution": "A",
            "category": "Relation",
        },
        adapter=("table.Table", {"path": Path("table.jsonl")}),
        stored=lambda row: [row["images"]],
    ),
}
UNITS = {
    "open the first time": "processor seconds",
    "open again": "processor seconds",
    "read at random": "rows a processor second",
    "memory to open": "MB",
    "memory to read": "MB",
    "files left open by reading": "files",
}


@contextmanager
def peak_memory() -> Generator[list[float]]:
    """Gives a list that holds, after the block, by how many MB private memory grew at most."""
    process, growth, is_over = psutil.Process(), [0.0], threading.Event()

    def private() -> float:
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 1e6

    before = private()

    def watch() -> None:
        while not is_over.wait(0.01):
            growth[0] = max(growth[0], private() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        is_over.set()
        thread.join()
        growth[0] = max(growth[0], private() - before)


def measure(case: Case, side: str, folder: Path) -> dict[str, float]:
    """Opens a table and reads rows of it at random, in this process."""
    import_module("datasets")
    import_module(f"visual_r1.datasets.{case.adapter[0].partition('.')[0]}")
    started = time.process_time()
    with peak_memory() as to_open:
        table = getattr(case, side)(folder)
    opened = time.process_time() - started
    table[0]
    process = psutil.Process()
    num_files = process.num_fds()
    indices = random.Random(0).sample(range(len(table)), min(NUM_READ, len(table)))
    started = time.process_time()
    with peak_memory() as to_read:
        for index in indices:
            table[index]
    return {
        "open": opened,
        "read at random": len(indices) / (time.process_time() - started),
        "memory to open": to_open[0],
        "memory to read": to_read[0],
        "files left open by reading": process.num_fds() - num_files,
    }


def runs(name: str, side: str, folder: Path) -> list[dict[str, float]] | str:
    """A first opening, which prepares, and further ones, each in a process of its own; or why it cannot be done."""
    command = [sys.executable, "-m", "benchmarks.adapters", name, "--side", side, "--folder", str(folder)]
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(folder / side),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    results = []
    for _ in range(1 + NUM_RUNS):
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            return result.stderr.strip().splitlines()[-1] if "Nested data" not in result.stderr else NESTED
        results.append(json.loads(result.stdout.splitlines()[-1]))
    shutil.rmtree(folder / side, ignore_errors=True)
    return results


NESTED = "pyarrow: Nested data conversions not implemented for chunked array outputs"


def figures(results: list[dict[str, float]] | str) -> dict[str, float | None]:
    """One number for each metric, None where a side failed: of times the best of all runs."""
    if isinstance(results, str):
        return dict.fromkeys(UNITS)
    first, *others = results
    return {
        "open the first time": first["open"],
        "open again": min(run["open"] for run in others),
        "read at random": max(run["read at random"] for run in others),
        "memory to open": first["memory to open"],
        "memory to read": max(run["memory to read"] for run in others),
        "files left open by reading": max(run["files left open by reading"] for run in others),
    }


def compare(name: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each metric of a case."""
    sides = {side: runs(name, side, folder) for side in ("stock", "ours")}
    if isinstance(sides["ours"], str):
        raise RuntimeError(f"{name}: {sides['ours']}")
    note = {"note": f"stock: {sides['stock']}"} if isinstance(sides["stock"], str) else {}
    values = {side: figures(results) for side, results in sides.items()}
    rows = []
    for metric, unit in UNITS.items():
        stock, ours = (values[side][metric] for side in ("stock", "ours"))
        rows.append(
            {
                "case": name,
                "metric": metric,
                "stock": None if stock is None else round(stock, 2),
                "ours": round(ours or 0.0, 2),
                "ratio": round(ours / stock, 2) if stock and ours else None,
                "unit": unit,
                "runs": 1 if metric in ("open the first time", "memory to open") else NUM_RUNS,
                **note,
            }
        )
    return rows


def main() -> None:
    """Runs the cases named, or all of them, and writes all of them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="default: %(default)s")
    parser.add_argument("--side", choices=("stock", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(CASES[options.cases[0]], options.side, options.folder)))
        return
    rows = []
    for name in options.cases or CASES:
        with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
            CASES[name].write(Path(folder), options.rows)
            for row in compare(name, Path(folder)):
                print("{case:16} {metric:28} stock {stock!s:>9}  ours {ours!s:>9}  {unit}".format(**row), flush=True)
                rows.append(row)
    if not options.cases and options.rows == NUM_ROWS:
        write_json(RESULTS, {**facts({"num_rows": options.rows, "num_read": NUM_READ}), "results": rows})
        print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    main()
