"""A hub on this machine: serves files of data set repositories to the real clients, as huggingface.co does.

Run as a program, it opens the tables that `test_hub.py` asks about and prints what came of it as JSON. The clients read
their hub's address when they are imported, so the test's own process cannot be turned to another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: test, path: "test*.parquet"}
- config_name: 2D
  data_files:
  - {split: test, path: test_2d.parquet}
---
"""


class Hub(BaseHTTPRequestHandler):
    """Answers for `repositories`."""

    repositories: dict[str, dict[str, bytes]] = {}
    gated: set[str] = set()
    sent: list[str] = []
    """Files that were sent, not only asked about."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        match = re.fullmatch(r"(/api)?/datasets/([^/]+/[^/]+)(?:/(.*))?", path)
        repository = match[2] if match else ""
        if repository in self.gated:
            self.refuse(403, "GatedRepo")
        elif match is None or repository not in self.repositories:
            self.refuse(404, "RepoNotFound")
        elif match[1]:
            self.describe(repository, match[3] or "", body)
        else:
            self.send(repository, match[3].split("/", 2)[2])

    do_GET = do_HEAD = do_POST = answer

    def describe(self, repository: str, what: str, body: bytes) -> None:
        files = self.repositories[repository]
        asked = list(files)
        if what.startswith("paths-info"):
            asked = [name for name in parse_qs(body.decode()).get("paths", []) if name in files]
        entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in asked]
        is_list = what.startswith(("tree", "paths-info"))
        facts = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        content = json.dumps(entries if is_list else facts).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send(self, repository: str, file: str) -> None:
        content = self.repositories[repository].get(file)
        if content is None:
            self.refuse(404, "EntryNotFound")
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.sent.append(file)
            self.wfile.write(content)

    def refuse(self, status: int, reason: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def outcome(open_table: Callable[[], Any]) -> dict[str, Any]:
    """What opening a table gave: its number of rows or its error's kind and text, and which files the hub sent."""
    Hub.sent.clear()
    try:
        result: dict[str, Any] = {"rows": len(open_table())}
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    return {**result, "sent": sorted(Hub.sent)}


def main(folder: Path) -> dict[str, dict[str, Any]]:
    """Opens tables on this hub, then once more while it is out of reach."""
    from tests.tables import make_table
    from visual_r1.datasets.cvbench import CVBench
    from visual_r1.datasets.rows import open_rows
    from visual_r1.datasets.sat import Sat

    def files_of(schema: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in make_table(schema, folder / schema).iterdir()}

    Hub.repositories = {
        "array/SAT": files_of("sat"),
        "nyu-visionx/CV-Bench": {**files_of("cvbench"), "README.md": CARD.encode(), "img/1.png": b"not asked for"},
        "mine/lines": {"train.jsonl": b'{"a": 1}\n{"a": "x"}\n'},
    }
    Hub.gated = {"mine/gated"}
    results = {
        "sat": outcome(lambda: Sat(path="array/SAT", split="val")),
        "sat again": outcome(lambda: Sat(path="array/SAT", split="val")),
        "cvbench": outcome(lambda: CVBench(path="nyu-visionx/CV-Bench")),
        "configuration": outcome(lambda: open_rows("nyu-visionx/CV-Bench", name="2D")),
        "lines": outcome(lambda: open_rows("mine/lines")),
        "no such file": outcome(lambda: open_rows("array/SAT", data_files=["SAT_dev.parquet"])),
        "no such configuration": outcome(lambda: open_rows("nyu-visionx/CV-Bench", name="4D")),
        "no such split": outcome(lambda: open_rows("nyu-visionx/CV-Bench", split="train")),
        "no such repository": outcome(lambda: open_rows("no/such")),
        "no such repository's file": outcome(lambda: open_rows("no/such", data_files=["a.parquet"])),
        "gated": outcome(lambda: open_rows("mine/gated")),
        "gated file": outcome(lambda: open_rows("mine/gated", data_files=["a.parquet"])),
    }

    import datasets.config
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return {
        **results,
        "offline: sat": outcome(lambda: Sat(path="array/SAT", split="val")),
        "offline: sat, not fetched": outcome(lambda: Sat(path="array/SAT", split="train")),
        "offline: cvbench": outcome(lambda: CVBench(path="nyu-visionx/CV-Bench")),
        "offline: lines": outcome(lambda: open_rows("mine/lines")),
        "offline: never seen": outcome(lambda: open_rows("no/such")),
    }


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = Path(sys.argv[1])
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        os.environ.pop(name, None)
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    print(json.dumps(main(home)))
