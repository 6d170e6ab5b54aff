"""An engine that dies says so in one line with the fix; no engine is needed to see that."""

from __future__ import annotations

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch

from visual_r1 import distributed
from visual_r1.config import build, compose_config
from visual_r1.rollout.engine import EngineError
from visual_r1.rollout.pushes import Pushes
from visual_r1.rollout.server_client import RouteError, ServerClient
from visual_r1.rollout.vllm_colocate import VllmColocateEngine, _dying, _Running


class EngineDeadError(Exception):
    """Of the name that vLLM's own has."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("tried to allocate 2 GiB\nmore"), "has run out of memory .*: lower rollout"),
        (EngineDeadError("worker 0"), "vLLM has died .worker 0.; the same command resumes the run"),
        (ValueError("Available memory on node 0 (1.0/2.0 GiB)"), "finds too little memory"),
    ],
)
def test_a_death_in_this_process_is_one_line(error, message):
    with pytest.raises(EngineError, match=message) as said, _dying():
        raise error
    assert "\n" not in str(said.value) and "the same command resumes the run" in str(said.value)


@pytest.mark.parametrize("error", [ValueError("another"), RuntimeError("a fault of ours")])
def test_what_is_no_death_keeps_its_own_error(error):
    with pytest.raises(type(error), match=str(error)), _dying():
        raise error


def test_an_engine_that_does_not_start_in_one_of_several_processes_ends_it(policies, monkeypatch):
    """The others wait for it within vLLM's start, and would wait for an hour."""

    def no_room(*_arguments):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(VllmColocateEngine, "_llm", no_room)
    engine = build(compose_config(["rollout=vllm_colocate"]).rollout.engine)
    with pytest.raises(EngineError, match="run out of memory"), engine.serving(policies["base"]):
        pass
    said = []
    monkeypatch.setattr(distributed, "is_joined", lambda: True)
    monkeypatch.setattr(distributed, "end_unheard", lambda message: said.append(message) or sys.exit(2))
    with pytest.raises(SystemExit), engine.serving(policies["base"]):
        pass
    assert len(said) == 1 and "run out of memory" in said[0]


def test_what_an_engine_has_died_of_is_not_hidden_by_its_rest(policies, monkeypatch):
    class Lost:
        def wake(self, policy):
            """As if it lived."""

        def rest(self):
            raise RuntimeError("the device is lost")

    monkeypatch.setattr(VllmColocateEngine, "_started", lambda *_arguments: Lost())
    engine = build(compose_config(["rollout=vllm_colocate"]).rollout.engine)
    with pytest.raises(EngineError, match="out of memory"), engine.serving(policies["base"]):
        raise EngineError("vLLM has run out of memory")
    with pytest.raises(RuntimeError, match="the device is lost"), engine.serving(policies["base"]):
        pass


def test_an_engine_that_keeps_what_other_weights_have_computed_is_refused():
    keeping = SimpleNamespace(reset_prefix_cache=lambda: False, llm_engine=SimpleNamespace(reset_encoder_cache=list))
    with pytest.raises(EngineError, match="still holds prompts that other weights have computed"):
        _Running(llm=keeping, kind=("", "float32"), sleeps=False, pushes=Pushes(changed_only=True)).forget()


class _Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"{")
            return
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b'{"error":\n "EngineCore died"}')

    def log_message(self, format, *args):
        """Says nothing."""


@pytest.fixture(scope="module")
def url():
    server = HTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_server_that_refuses_is_quoted(url):
    with pytest.raises(RouteError, match="answers 500 to /x: .*EngineCore died.*resumes the run") as said:
        ServerClient(url=url, timeout_seconds=5).post("x")
    assert said.value.status == 500 and "\n" not in str(said.value)


def test_a_server_that_breaks_off_is_gone(url):
    with pytest.raises(EngineError, match="no vLLM server answers at"):
        ServerClient(url=url, timeout_seconds=5).post("cut")


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(EngineError, match="no vLLM server answers at .* start it with `visual-r1 rollout-server`"):
        ServerClient(url=url, timeout_seconds=5).get("v1/models")


def test_a_server_that_hangs_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineError, match="timed out"):
            ServerClient(url=url, timeout_seconds=0.2).get("health")
