"""What every request passes before the application sees it: the token, the size of its body, and the counters."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybrid.serve.errors import ApiError
from hybrid.serve.metrics import Metrics

BODY = 64 * 1024
UPLOAD = 10 * 1024 * 1024
UPLOADS = ("/v1/images/edits", "/v1/audio/transcriptions")
"""Paths whose bodies are files."""

COUNTED = ("/", "/health", "/metrics", "/v1/models", "/v1/images/generations", *UPLOADS)
"""Paths that are counted by name; all others together."""


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        token: what ``Authorization: Bearer`` must hold for ``/v1`` and ``/metrics``; None asks for nothing.
        metrics: a function, since the application makes them when it starts.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Callable[[], Metrics]) -> None:
        self.app, self.token, self.metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a counted body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, started, status = _route_path(scope), time.monotonic(), 500
        counted = path if path in COUNTED else "other"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        limit = UPLOAD if path in UPLOADS else BODY
        try:
            refused = self._refusal(path, Headers(scope=scope), limit)
            if refused is not None:
                await refused.response()(scope, receive, noting)
            else:
                await self.app(scope, _bounded(receive, limit), noting)
        finally:
            self.metrics().requests.labels(counted, str(status)).inc()
            self.metrics().request_seconds.labels(counted).observe(time.monotonic() - started)

    def _refusal(self, path: str, headers: Headers, limit: int) -> ApiError | None:
        if self.token is not None and (path.startswith("/v1/") or path == "/metrics"):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode("latin-1"), self.token.encode()
            ):
                message = "this server asks for its token: send 'Authorization: Bearer TOKEN'"
                return ApiError(401, message, "invalid_token", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            return ApiError(413, _too_large(limit), "too_large", headers={"Connection": "close"})
        return None


def _route_path(scope: Scope) -> str:
    """The path that routes are looked up by: without the prefix under which the application is mounted."""
    path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def _too_large(limit: int) -> str:
    return f"the request's body is larger than {limit // 1024} KiB, the most that this path takes"


def _bounded(receive: Receive, limit: int) -> Receive:
    """``receive`` that fails once a body without a stated length grows beyond the limit."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return bounded
