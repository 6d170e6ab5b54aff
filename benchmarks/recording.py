"""What benchmarks share: what is measured in turns, processes of their own, and the record beside the numbers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from visual_r1 import provenance
from visual_r1.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NANO = ROOT / "models" / "seed0" / "nano-base"
T = TypeVar("T")


def environment(threads: str = "1") -> dict[str, str]:
    """Of a measured process: nothing asks a network, and vLLM finds no file that another run has left."""
    ours = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours |= {"OMP_NUM_THREADS": threads, "VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja
    return {**os.environ, **ours, "PATH": path}


def run_command(command: Sequence[str], *, threads: str = "1") -> str:
    """What a command prints.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    result = subprocess.run(command, cwd=ROOT, env=environment(threads), capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()[-2000:]}")
    return result.stdout


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside numbers: commit, hardware, versions, and what was set."""
    whole = provenance.record(config=config, data={}, root=ROOT)
    kept = {key: whole[key] for key in ("started", "hardware", "versions", "config")}
    return {"commit": whole["code"]["commit"], "is_dirty": _is_dirty(), **kept}


def _is_dirty() -> bool | None:
    """Whether something is changed beside the commit, apart from what benchmarks have written; None outside of git."""
    try:
        return bool(run_command(["git", "status", "--porcelain", "--", ".", f":(exclude){RESULTS.relative_to(ROOT)}"]))
    except (OSError, RuntimeError):
        return None


def write_part(path: Path, part: str, record: Mapping[str, Any]) -> None:
    """Puts one part's record beside the others of a file: they may be measured on different days."""
    parts = read_json(path)["parts"] if path.is_file() else {}
    write_json(path, {"parts": {**parts, part: record}})


def in_turns(sides: Mapping[str, Callable[[], T]], *, turns: int) -> dict[str, list[T]]:
    """What each side has given, asked A B A B: what the machine does meanwhile meets all of them."""
    given: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, measure in sides.items():
            given[name].append(measure())
    return given


def compared(
    case: str,
    metric: str,
    values: Mapping[str, Sequence[float]],
    *,
    unit: str,
    is_share: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A row: medians of stock and ours, their ratio and the spread.

    Args:
        case: what was done.
        metric: what was measured of it.
        values: of ``stock`` and ``ours``.
        unit: of the values.
        is_share: the ratio is ours over stock, as of bytes: what share is left. Else stock over ours, as of seconds:
            how many times faster.
        more: further columns.
    """
    stock, ours = (statistics.median(values[side]) for side in ("stock", "ours"))
    over, under = (ours, stock) if is_share else (stock, ours)
    return {
        "case": case,
        "metric": metric,
        "stock": _short(stock),
        "ours": _short(ours),
        "ratio": round(over / under, 2) if under else None,
        "spread": {side: [_short(min(each)), _short(max(each))] for side, each in values.items()},
        "unit": unit,
        "runs": min(len(each) for each in values.values()),
        **more,
    }


class Rows:
    """Rows of one part as they are measured, kept on disk: a part that was interrupted goes on where it was."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Takes what an earlier attempt left under the same key, and forgets what it left under another.

        Args:
            path: a file of JSON lines: the key, then a case each.
            key: what must be equal for rows to stand together: commit, threads.
        """
        self._path = path
        lines = [one for line in path.read_text().splitlines() if (one := _parsed(line))] if path.is_file() else []
        self._cases: dict[str, list[dict[str, Any]]] = {}
        if lines and lines[0] == dict(key):
            self._cases = {line["case"]: line["rows"] for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in [dict(key), *self._lines()]))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All of them, in the order in which they were measured."""
        return [row for rows in self._cases.values() for row in rows]

    def __contains__(self, case: str) -> bool:
        return case in self._cases

    def add(self, case: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps what was measured of a case, all of it or nothing."""
        self._cases[case] = [dict(row) for row in rows]
        with self._path.open("a") as file:
            file.write(json.dumps({"case": case, "rows": rows}) + "\n")

    def finish(self) -> None:
        """Deletes the file: the rows stand elsewhere now."""
        self._path.unlink()

    def _lines(self) -> list[dict[str, Any]]:
        return [{"case": case, "rows": rows} for case, rows in self._cases.items()]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # the process was killed while it wrote this


def _short(value: float) -> float:
    """Four digits that mean something."""
    return float(f"{value:.4g}")
