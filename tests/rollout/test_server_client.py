"""What stands at a server's address and answers; what refuses or dies is in test_vllm_death.py."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from visual_r1.rollout.engine import EngineError
from visual_r1.rollout.server_client import ServerClient

ANSWERS = {"/json": (200, b'{"ready": true}'), "/empty": (200, b""), "/page": (200, b"<html>\n hello</html>")}


class Handler(BaseHTTPRequestHandler):
    """Answers by the route."""

    def do_GET(self) -> None:
        """As `BaseHTTPRequestHandler` calls it."""
        status, content = ANSWERS.get(self.path, (404, b"no such route\n"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def client():
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ServerClient(url=f"http://127.0.0.1:{server.server_port}", timeout_seconds=10)
        server.shutdown()


def test_an_answer_is_read(client):
    assert client.get("json") == {"ready": True} == client.post("json", {"a": 1})
    assert client.post("empty") is None


def test_what_is_no_vllm_is_named(client):
    with pytest.raises(EngineError, match=r"^what answers /page at .* is no vLLM server \('<html> hello</html>'\)"):
        client.get("page")
