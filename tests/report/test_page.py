"""The page's text: whatever a run has written stays text, and colours can be told from their background."""

from __future__ import annotations

import json
import re

import pytest

from tests.finished_runs import write_run
from visual_r1.cli import main
from visual_r1.report.page import COLOURS, island

HOSTILE = "</script><script>window.hacked = 1</script><!-- {{data}}"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "a" / "seed0", completion=f"{HOSTILE}{{thought}}</think><answer>({{letter}})</answer>")
    write_run(folder / HOSTILE.replace("/", "|") / "seed0", config={"method": {"name": HOSTILE}})
    out = folder / "report.html"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def test_a_text_cannot_end_its_script():
    text = island({"text": HOSTILE})
    assert "<" not in text and json.loads(text) == {"text": HOSTILE}


def test_no_text_of_a_run_becomes_markup(page):
    markup = re.sub(r"(?s)(<script[^>]*>).*?(</script>)", r"\1\2", page)
    assert "window.hacked" in markup and "<script>window.hacked" not in markup
    assert len(re.findall(r"<script", page)) == len(re.findall(r"</script>", page)) == 4
    assert "&lt;!-- {{data}}" in markup  # and is no place to be filled in


def test_nothing_is_fetched(page):
    assert "default-src 'none'" in page
    markup = re.sub(r"(?s)(<script[^>]*>).*?(</script>)", r"\1\2", page)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", markup)


def test_it_is_small_and_names_the_licence_of_what_it_carries(page):
    assert len(page) < 3_000_000
    assert "Plotly.js" in page and "MIT licence" in page


@pytest.mark.parametrize(("scheme", "paper"), [("light", "#ffffff"), ("dark", "#1c1f25")])
def test_lines_stand_out_from_their_background(scheme, paper):
    # 3 to 1 is what the Web Content Accessibility Guidelines (1.4.11) ask of graphics.
    assert len(COLOURS[scheme]) >= 8
    assert not {colour: ratio for colour in COLOURS[scheme] if (ratio := contrast(colour, paper)) < 3}


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_command_chooses_the_format_by_the_files_name(tmp_path, capsys):
    write_run(tmp_path / "a" / "seed0")
    run = str(tmp_path / "a")
    assert main(["report", run, "-o", str(tmp_path / "x.csv")]) == 0
    assert (tmp_path / "x.csv").read_text().startswith("kind,name,against")
    assert main(["report", run, "--format", "md"]) == 0
    assert "# Report" in capsys.readouterr().out
    assert main(["report", run, "-o", str(tmp_path / "x.pdf")]) == 2
    assert main(["report", str(tmp_path / "none")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--format html, md or csv" in errors[0] and "there is no such folder" in errors[1] and len(errors) == 2
