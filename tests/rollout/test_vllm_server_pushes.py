"""What a server is sent, and when it must forget; it takes weights as vLLM's worker does, without vLLM."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from visual_r1.rollout.engine import EngineError
from visual_r1.rollout.vllm_server import VllmServerEngine
from visual_r1.rollout.weights import policy_weights


@dataclass
class Server:
    """What lies behind the routes."""

    folder: str | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """What changes something, by name."""
    url: str = ""

    def answer(self, route: str, body: dict[str, Any]) -> Any:
        if route != "/collective_rpc":
            self.asked.append(route.removeprefix("/"))
            return {"success": True}
        if body["method"] == "describe":
            return {"results": [{"folder": self.folder}]}
        folder, base, num_tensors = body["args"]
        if base is not None and base != self.folder:
            return {"results": [False]}
        self.asked.append("take_folder")
        new = {name: one for path in Path(folder).iterdir() for name, one in load_file(path).items()}
        assert len(new) == num_tensors
        self.weights |= new
        self.folder = folder
        return {"results": [True]}

    def was_asked(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def server():
    behind = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = json.dumps(behind.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *args):
            """Says nothing."""

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    behind.url = f"http://127.0.0.1:{http.server_port}"
    yield behind
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def new_engine(server, tmp_path):
    def build(*, push_changed_only=True):
        return VllmServerEngine(
            url=server.url,
            weights_dir=str(tmp_path),
            bf16=False,
            timeout_seconds=30.0,
            batch_size=1,
            max_model_length=512,
            kv_cache_gib=None,
            cuda_graphs=False,
            push_changed_only=push_changed_only,
        )

    return build


def pushed(engine, policy):
    """How many tensors one visit sends."""
    with engine.serving(policy) as sampler:
        return sampler.pushed.num_tensors


def is_served(server, policy):
    expected = dict(policy_weights(policy))
    return server.weights.keys() == expected.keys() and all(
        torch.equal(server.weights[name], tensor) for name, tensor in expected.items()
    )


def double_norm(policy):
    with torch.no_grad():
        policy.model.model.language_model.norm.weight.mul_(2)


EVERYTHING = ["take_folder", "reset_prefix_cache", "reset_encoder_cache"]


def test_a_server_is_asked_for_nothing_where_nothing_has_changed(server, new_engine, load, tmp_path):
    engine, policy = new_engine(), load()
    total = len(dict(policy_weights(policy)))
    assert pushed(engine, policy) == total and server.was_asked() == EVERYTHING
    assert pushed(engine, policy) == 0 and server.was_asked() == []  # what it remembers is still right
    double_norm(policy)
    assert pushed(engine, policy) == 1 and server.was_asked() == EVERYTHING
    assert is_served(server, policy) and not list(tmp_path.iterdir())


def test_it_can_be_turned_off(server, new_engine, load):
    engine, policy = new_engine(push_changed_only=False), load()
    assert pushed(engine, policy) == pushed(engine, policy) > 1
    assert server.was_asked() == 2 * EVERYTHING


def test_a_server_that_was_started_anew_is_given_everything(server, new_engine, load):
    engine, policy = new_engine(), load()
    total = pushed(engine, policy)
    server.folder, server.weights = None, {}
    assert pushed(engine, policy) == total and is_served(server, policy)


def test_a_server_that_another_run_has_used_is_given_everything(server, new_engine, load):
    engine, policy, other = new_engine(), load(), load()
    double_norm(other)
    total = pushed(engine, policy)
    assert pushed(new_engine(), other) == total and is_served(server, other)
    assert pushed(engine, policy) == total and is_served(server, policy)


def test_a_part_of_the_weights_is_not_taken_over_those_of_another_run(server, new_engine, load, monkeypatch):
    engine, policy = new_engine(), load()
    pushed(engine, policy)
    double_norm(policy)
    push = VllmServerEngine._push

    def late(self, *arguments):
        server.folder = "/another/runs"
        push(self, *arguments)

    monkeypatch.setattr(VllmServerEngine, "_push", late)
    with pytest.raises(EngineError, match="has been given other weights meanwhile"):
        pushed(engine, policy)
    monkeypatch.undo()
    pushed(engine, policy)
    assert is_served(server, policy)
