"""Makes torchvision importable beside a CPU build of torch; `make setup` runs it, and it may be run again at any time.

PyPI's Linux wheels of torchvision are CUDA builds. Beside a CPU build of torch their C++ operators cannot load, which
torchvision forgives, and then ``import torchvision`` dies all the same ("operator torchvision::nms does not exist"):
`torchvision/_meta_registrations.py` registers fake kernels for two of those operators without asking whether they are
there. transformers' Qwen2-VL processor needs torchvision, though none of these operators, so declaring the two schemas
is enough. The lines are appended to `torchvision/extension.py` because every process must see them, also those that
import torchvision without us.

torchaudio and torchcodec are CUDA builds too; transformers imports them whenever they are installed, and fails. triton
is a gigabyte that a CPU cannot use. With a CPU torch all three are removed where something has pulled them in.

On a machine whose torch is a CUDA build nothing is touched. To be deleted when torchvision guards these two calls, or
when PyPI serves CPU wheels of it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

USELESS_ON_CPU = ("torchaudio", "torchcodec", "triton")
SCHEMAS = """
# Schemas for a CPU torch, appended by visual_r1's tools/cure_torchvision.py, which says why.
if not _has_ops():
    _cpu_schemas = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _cpu_schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def torch_is_cpu_build() -> bool:
    """Whether the installed torch was built without any accelerator."""
    import torch

    return torch.version.cuda is None and getattr(torch.version, "hip", None) is None


def import_error() -> str:
    """The last line of what ``import torchvision`` prints in a fresh process; empty when it works."""
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["killed"])[-1]


def is_installed(package: str) -> bool:
    """Whether pip knows the package."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    """Cures what needs it, says what it did, and returns 1 when torchvision still cannot be imported."""
    if not torch_is_cpu_build():
        print("torchvision: torch is not a CPU build, nothing to cure")
        return 0
    if useless := [package for package in USELESS_ON_CPU if is_installed(package)]:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *useless], check=True)
        print(f"removed {', '.join(useless)}: CUDA builds beside a CPU torch")

    error = import_error()
    if not error:
        print("torchvision: imports, nothing to cure")
        return 0
    if "torchvision::nms" not in error:
        print(f"torchvision: cannot be imported, and not for the known reason: {error}", file=sys.stderr)
        return 1
    # find_spec does not import the package, which is what fails here.
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None, "the import found the package a moment ago"
    extension = Path(spec.origin).parent / "extension.py"
    extension.write_text(extension.read_text(encoding="utf-8") + SCHEMAS, encoding="utf-8")
    if error := import_error():
        print(f"torchvision: still cannot be imported: {error}", file=sys.stderr)
        return 1
    print(f"torchvision: declared two operator schemas for a CPU torch in {extension}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
