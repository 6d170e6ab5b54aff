"""Writes README's table of results from finished runs: ``python tools/readme_results.py runs/*/seed*``.

Every row is read from a run's ``summary.json``, so no number in the table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- /results -->)", re.DOTALL)


def main() -> None:
    """Reads the runs and replaces the table in README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = [json.loads((run / "summary.json").read_text()) for run in parser.parse_args().runs]
    runs.sort(key=lambda run: (run["name"], run["seed"]))
    text = README.read_text()
    if not _BLOCK.search(text):
        raise SystemExit(f"{README}: the markers of the results table are missing")
    README.write_text(_BLOCK.sub(lambda match: match[1] + table(runs) + match[2], text))


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table with the commands that make them."""
    num_items = {run["num_items"] for run in runs}
    lines = [
        f"Held-out accuracy on {'/'.join(map(str, sorted(num_items)))} questions (greedy, strict parser; 95 % Wilson "
        f"intervals over items; chance {100 * runs[0]['chance']:.1f} %), mean response length in tokens, share of "
        "answers that reflect:",
        "",
        "| command | seed | accuracy before | accuracy after | length | reflection | minutes | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        cells = [
            f"`{run['command']}`",
            str(run["seed"]),
            _share(run, "before"),
            _share(run, "after"),
            f"{run['length_before']:.0f} → {run['length_after']:.0f}",
            f"{100 * run['reflection_before']:.0f} → {100 * run['reflection_after']:.0f} %",
            f"{run['wall_seconds'] / 60:.1f}",
            (run["commit"] or "unknown")[:10],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(run: dict[str, Any], when: str) -> str:
    low, high = run[f"accuracy_{when}_interval"]
    return f"{100 * run[f'accuracy_{when}']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
