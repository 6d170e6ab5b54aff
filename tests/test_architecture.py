"""The shape of the code: imports point one way, each library has one home, what is pure stays pure.

docs: the layout in README.md. A new module fails here until it has a layer, which is the moment to think where it goes.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "visual_r1"
MODULES = sorted(PACKAGE.rglob("*.py"))
TRACKED = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
).stdout.split()

# Lowest first. A module may import from its own layer and from those below.
LAYERS = (
    {"distributed", "errors", "examples", "files", "images", "manifest", "preemption", "statistics", "provenance"},
    {"prompts", "parsing", "run_folder"},
    {"rewards", "metrics", "scoring", "reflection_record"},
    {"architectures", "datasets", "organisms"},
    {"memory", "models", "rollout", "tracking"},
    {
        "evaluation",
        "interventions",
        "methods",
        "organism_card",
        "probe",
        "reflection_measures",
        "report",
        "update_timing",
    },
    {"config"},
    {
        "dashboard",
        "experiment",
        "reflection_probe",
        "smoke",
        "cli",
        "doctor",
        "gpu_check",
        "gpu_stages",
        "studies",
        "sweeps",
    },
)

# The one place that may know each library, so that replacing it is one change.
HOMES = {
    "hydra": ("config.py", "sweeps/compose.py"),
    "omegaconf": ("config.py", "sweeps/compose.py"),
    "wandb": ("tracking/", "dashboard.py"),
    "wandb_workspaces": "dashboard.py",
    "tensorboard": "tracking/",
    "vllm": "rollout/",
    "trl": "methods/",
    "matplotlib": "report/",
    "plotly": "report/page.py",
    "math_verify": "scoring/",
    "latex2sympy2_extended": "scoring/",
}

# What must answer at once (a test, --help, a reward in somebody's notebook) loads neither torch nor transformers.
LIGHT = (
    *("errors", "examples", "images", "prompts", "parsing", "statistics", "files", "run_folder", "provenance"),
    *("config", "cli", "distributed", "doctor", "manifest", "memory", "preemption", "reflection_record"),
    *("interventions", "reflection_measures", "reflection_probe"),
    *(
        "rewards/",
        "metrics/",
        "scoring/",
        "datasets/",
        "report/",
        "studies/",
        "sweeps/",
        "tracking/",
        "dashboard",
        "evaluation",
    ),
)


def layer(name: str) -> int | None:
    """The number of the layer that a module or folder of the package belongs to; None when nobody has said."""
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


def top(path: Path) -> str:
    """A module's first name below the package: ``rewards`` for ``rewards/accuracy.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth and in any branch."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            # `from visual_r1 import provenance` imports a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """First names below the package of what a file imports from it."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("visual_r1.")}
    return {name for name in names if not name.startswith("__")}


def is_light(path: Path) -> bool:
    name = path.relative_to(PACKAGE).as_posix()
    return any(name.startswith(entry) if entry.endswith("/") else name == f"{entry}.py" for entry in LIGHT)


def test_there_is_something_to_check():
    assert len(MODULES) > 20 and {PACKAGE / "files.py", PACKAGE / "rewards" / "accuracy.py"} <= set(MODULES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    if path == PACKAGE / "__init__.py":
        assert not ours(path)
        return
    own = layer(top(path))
    assert own is not None, f"{top(path)} has no layer: add it to LAYERS"
    above = {name for name in ours(path) if (other := layer(name)) is None or other > own}
    assert not above, f"{path.name} imports from above: {sorted(above)}"


@pytest.mark.parametrize("library", HOMES)
def test_a_library_stays_at_home(library):
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert not {user for user in users if not user.startswith(HOMES[library])}


def test_what_is_light_loads_no_torch():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if is_light(path)]
    assert len(names) > 20
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    for heavy in ('torch', 'transformers', 'trl', 'wandb', 'matplotlib', 'datasets'):\n"
        "        if heavy in sys.modules: sys.exit(f'{name} loads {heavy}')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr.strip()


@pytest.mark.parametrize("folder", ["visual_r1", "tests", "tools"])
def test_every_file_says_what_it_is(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    silent = [path for path in files if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_no_file_names_a_place_on_somebodys_machine():
    # In pieces, or this line would name one.
    machine_path = re.compile(r"(?<![\w.:/-])/" + r"(root|work|home/\w+|Users/\w+|tmp/\w+|mnt|data\d*)/")
    found = []
    for name in TRACKED:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture, weights, or a file that this work tree has just deleted
        found += [f"{name}: {match[0]}" for match in machine_path.finditer(text)]
    assert not found
