"""docs/scale.md: its tables are the arithmetic's, its commands compose and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tools import scale_tables
from visual_r1.cli import _parser
from visual_r1.config import build, compose_config, resolve
from visual_r1.memory import shape_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text()
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]

_BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
_CELLS = re.findall(r"^\| [^|]+ \| `((?:\w+[.\w]*=\S+ ?)+)`", PAGE, re.MULTILINE)
RUNS = [
    *_CELLS,
    *re.findall(r"run\.py ([^#|&\n]+)", _BLOCKS),
    *(row for rows in scale_tables.ROWS.values() for row in rows),
]
COMMANDS = re.findall(r"^(?:\w+=\S+ )*visual-r1 (.*?)(?: +#.*)?$", _BLOCKS, re.MULTILINE)


def test_the_tables_are_those_of_the_arithmetic():
    assert scale_tables.with_tables(PAGE) == PAGE, "run python tools/scale_tables.py"
    assert PAGE.count("| Qwen2-VL-7B |") == 6


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    # By the headers of the hub's safetensors files.
    [("Qwen2-VL-2B", 2_208_985_600), ("Qwen2-VL-7B", 8_291_375_616), ("Qwen3-VL-8B", 8_767_123_696)],
)
def test_the_models_of_the_tables_are_the_hubs(name, num_parameters):
    assert shape_of(scale_tables.architecture(name)).num_parameters == num_parameters


@pytest.mark.parametrize("overrides", sorted({run.strip() for run in RUNS}))
def test_a_run_of_the_page_composes_and_divides(overrides, monkeypatch):
    config = resolve(cfg := compose_config(shlex.split(overrides)))
    processes = config["distributed"]["num_processes"]
    if processes > 1:  # as the launcher would say
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
    build(cfg.method)
    assert processes % config["distributed"]["num_nodes"] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_known(command):
    options = _parser().parse_args(shlex.split(command))
    compose_config(options.overrides)


def test_there_is_something_to_check():
    assert (
        len(_CELLS) > 6
        and len(RUNS) > 15
        and {command.split()[0] for command in COMMANDS} == {"doctor", "rollout-server"}
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert links or page.name not in ("README.md", "scale.md", "paper_scale.md")
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]
