"""HTTP to a vLLM server, by the standard library: every failure is one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from visual_r1.rollout.engine import EngineError

START = "visual-r1 rollout-server"
"""The command that starts a server for a run; it takes the run's own overrides."""
_OPENER = build_opener(ProxyHandler({}))  # the server is a machine of ours: never by way of a proxy


class RouteError(EngineError):
    """The server is there and refuses."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class ServerClient:
    """Asks a server at a URL."""

    url: str
    timeout_seconds: float

    def get(self, route: str) -> Any:
        """The answer of a route; as `post`."""
        return self._ask(Request(f"{self.url}/{route}"))

    def post(self, route: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer, from JSON; None where it is empty.

        Raises:
            RouteError: the server refuses the route or the body.
            EngineError: it does not answer, or what answers is no vLLM.
        """
        data = json.dumps(body or {}).encode()
        request = Request(f"{self.url}/{route}", data=data, headers={"Content-Type": "application/json"})
        return self._ask(request)

    def _ask(self, request: Request) -> Any:
        try:
            with _OPENER.open(request, timeout=self.timeout_seconds) as response:
                content = response.read()
        except HTTPError as error:
            reason = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RouteError(
                f"the vLLM server at {self.url} answers {error.code} to {request.selector}: {reason}; its own output "
                "says more. When it runs again, the same command resumes the run",
                status=error.code,
            ) from error
        # URLError and timeouts are OSErrors; a server that is killed cuts its answer short.
        except (OSError, HTTPException) as error:
            raise EngineError(
                f"no vLLM server answers at {self.url} ({getattr(error, 'reason', error) or type(error).__name__}): "
                f"start it with `{START}` and the run's own overrides, then the same command resumes the run"
            ) from error
        try:
            return json.loads(content) if content else None
        except ValueError as error:
            start = " ".join(content[:80].decode(errors="replace").split())
            raise EngineError(
                f"what answers {request.selector} at {self.url} is no vLLM server ({start!r}): name the server that "
                f"`{START}` has started by rollout.engine.url"
            ) from error
