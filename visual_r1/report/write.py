"""Writes a report across runs in one of its formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_r1.examples import Example
from visual_r1.files import write_text
from visual_r1.report.across import drawn, findings
from visual_r1.report.markdown import as_markdown
from visual_r1.report.page import as_page
from visual_r1.report.tidy import as_csv

FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".csv": "csv"}
"""By the ending of the file's name."""


def report(
    paths: Sequence[Path],
    *,
    out: Path | None,
    format: str,
    keyword_lists: Mapping[str, Sequence[str]],
    examples_of: Callable[[Mapping[str, Any]], Sequence[Example]],
) -> str:
    """Makes a report and writes it.

    Args:
        paths: run folders, or folders that hold some.
        out: the file; None writes none.
        format: ``html``, ``md`` or ``csv``.
        keyword_lists: lists of phrases by name, which reflection is also counted by.
        examples_of: makes the data set that a node of a run's configuration names.

    Returns:
        The report's text.

    Raises:
        ValueError: there is no run at any of the paths, or the format is none of these.
    """
    found = findings(paths)
    if format == "csv":
        text = as_csv(found)
    elif format == "md":
        text = as_markdown(found)
    elif format == "html":
        text = as_page(found, drawn(found, keyword_lists=keyword_lists, examples_of=examples_of))
    else:
        raise ValueError(f"format is {format!r}, expected html, md or csv")
    if out is not None:
        write_text(out, text)
    return text
