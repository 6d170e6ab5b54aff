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
    runs = [run for run in runs if run["steps"]]  # an evaluation has no before and after
    if dirty := [run["name"] for run in runs if run["is_dirty"]]:
        raise SystemExit(f"made from uncommitted code, so nobody could make them again: {dirty}")
    runs.sort(key=lambda run: (run["name"], run["seed"]))
    text = README.read_text()
    if not _BLOCK.search(text):
        raise SystemExit(f"{README}: the markers of the results table are missing")
    README.write_text(_BLOCK.sub(lambda match: match[1] + table(runs) + match[2], text))


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table with the commands that make them."""
    num_items = {run["num_items"] for run in runs}
    lines = [
        f"Accuracy on {'/'.join(map(str, sorted(num_items)))} held-out questions (greedy, strict parser; 95 % Wilson "
        f"intervals over items; chance {100 * runs[0]['chance']:.1f} %, best constant answer "
        f"{100 * runs[0]['majority']:.1f} %) and with a blank image after training. Length in tokens and the share of "
        "completions that reflect are sampled on the probe at temperature 1, where a base model reflects before any "
        "training.",
        "",
        "| command | accuracy before | accuracy after | blank image | length | reflection | minutes | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        cells = [
            f"`{_command(run)}`",
            _share(run, "before"),
            _share(run, "after"),
            f"{100 * run['blank_accuracy_after']:.1f} %",
            f"{run['probe_length_before']:.0f} → {run['probe_length_after']:.0f}",
            f"{100 * run['probe_reflection_before']:.0f} → {100 * run['probe_reflection_after']:.0f} %",
            f"{run['wall_seconds'] / 60:.1f}",
            (run["commit"] or "unknown")[:10],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _command(run: dict[str, Any]) -> str:
    """What makes the run again, wherever its folder then lies."""
    return " ".join(word for word in run["command"].split(" ") if not word.startswith("runs_dir="))


def _share(run: dict[str, Any], when: str) -> str:
    low, high = run[f"accuracy_{when}_interval"]
    return f"{100 * run[f'accuracy_{when}']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
