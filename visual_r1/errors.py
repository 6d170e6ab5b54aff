"""What is told of somebody else's error: one line, for it becomes a part of one of ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
