"""One line of an error, whatever the library that raised it has to say."""

from __future__ import annotations

import pytest

from visual_r1.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no room\nin three volumes"), "no room"),
        (RuntimeError("\n\n  no room  \nmore"), "no room  "),
        (TimeoutError(), "TimeoutError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_the_first_line_says_something(error, line):
    assert first_line(error) == line
