"""What stands before the search server: every request passes it before a byte of it is parsed.

1. Without the token nothing but `/health` is answered.
2. A body says how long it is, is as long as its path allows at most, and is here within its time; all bodies together
   are bounded. A request that is refused unread is the last on its connection; what is still sent of it is thrown away
   for a moment, because a client that is cut off while it sends never reads why.
3. A connection on which no whole head of a request comes for a while is closed (`GuardedServer`; uvicorn waits for
   ever).
4. Every refusal, of whatever part of the server, is one line in one shape, `{"error": {"kind", "message"}}`, and
   repeats nothing of what was sent.

Not a middleware of Starlette's, which start a task for every request and cost as much as a search by words.
"""

import asyncio
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsearch_trl.core.errors import UserError


MAX_ELSEWHERE = 100_000
"""Bytes of a body for a path that takes none."""
MAX_HELD = 200_000_000
"""Bytes of all bodies that are being received or answered."""
RETRY_AFTER_S = 1
HEAD_S = 30
"""Seconds in which the head of a request has to come, at least; twice as many at most."""
_LINGER_S, _LINGER_BYTES = 2.0, 100_000_000
_LONGEST_MESSAGE = 300
_TICKS_A_SECOND = 10
"""Of uvicorn's main loop."""


class Refusal(Exception):
    """A request that is not answered: the caller's mistake, or more than the server can do."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers

    def written(self) -> dict[str, str]:
        return {"kind": self.kind, "message": self.message[:_LONGEST_MESSAGE]}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.written()}, status_code=self.status, headers=self.headers)


async def refuse(request: Request, refusal: Exception) -> JSONResponse:
    """The answer to a `Refusal`, as a handler of Starlette."""
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def _no_such_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "refused")
    return Refusal(error.status_code, kind, str(error.detail), error.headers).response()


async def _defect(request: Request, error: Exception) -> JSONResponse:
    """The answer in place of one that a defect has prevented; Starlette shows its traceback."""
    return Refusal(500, "internal", f"the server has failed: {type(error).__name__}").response()


HANDLERS: Mapping[Any, Any] = {Refusal: refuse, HTTPException: _no_such_request, Exception: _defect}
"""Of exceptions, for Starlette."""


def token_for(host: str, variable: str) -> str | None:
    """The bearer token of a server, which an environment variable holds.

    Raises:
        UserError: there is none, and others can reach the host.
    """
    token = os.environ.get(variable)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise UserError(f"others can reach {host}: set {variable} in the environment, here and for the clients")
    return token


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("search_requests", "Requests.", ["path", "status"], registry=self._registry)
        self._queries = Counter("search_queries", "Queries answered.", registry=self._registry)
        self._seconds = Histogram("search_request_seconds", "Seconds of a request.", registry=self._registry)
        self._pending = Gauge("search_pending_queries", "Queries under way or waiting.", registry=self._registry)

    def answered(self, queries: int, seconds: float) -> None:
        self._queries.inc(queries)
        self._seconds.observe(seconds)

    def text(self, pending: int) -> bytes:
        self._pending.set(pending)
        return generate_latest(self._registry)


class Guard:
    """An ASGI application before another.

    Args:
        token: A bearer token; None asks for none.
        limits: Bytes that the body of a request may have, by path; the paths that are counted by their names.
        body_timeout_s: Seconds within which a body has to be here.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, token: str | None, limits: Mapping[str, int], body_timeout_s: float
    ) -> None:
        self._app, self._metrics = app, metrics
        self._token, self._limits, self._body_timeout_s = token, limits, body_timeout_s
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._limits else "other"

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        body = bytearray()
        try:
            self._check_head(scope)
            posted = scope["method"] == "POST"
            whole = not posted or await self._read(body, receive, self._most(scope))
        except Refusal as refusal:
            self._held -= len(body)
            return await _refuse_unread(refusal, receive, counting)
        try:
            if whole:  # else the client has left
                await self._app(scope, _again(bytes(body), receive) if posted else receive, counting)
        finally:
            self._held -= len(body)

    def _most(self, scope: Scope) -> int:
        return self._limits.get(scope["path"]) or MAX_ELSEWHERE

    def _check_head(self, scope: Scope) -> None:
        """
        Raises:
            Refusal: there is no token, or a body whose length is not told, or is too much.
        """
        headers = Headers(scope=scope)
        if self._token is not None and scope["path"] != "/health":
            given = headers.get("Authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise Refusal(401, "unauthorised", "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        length = headers.get("Content-Length")
        # One that comes in pieces may say a length as well, and the pieces count.
        if scope["method"] == "POST" and (length is None or "Transfer-Encoding" in headers):
            raise Refusal(411, "length_required", "a request must say how long it is, and come in one piece")
        if length is not None and (not length.isdigit() or int(length[:20]) > self._most(scope)):
            raise _too_large(self._most(scope))

    async def _read(self, body: bytearray, receive: Receive, most: int) -> bool:
        """Receive a body; whether the client stayed to its end.

        Raises:
            Refusal: it is too long, takes too long, or is one too many.
        """
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    part = message.get("body", b"")
                    body += part
                    self._held += len(part)
                    if len(body) > most:
                        raise _too_large(most)
                    if self._held > MAX_HELD:
                        raise Refusal(503, "busy", "too much is being received", {"Retry-After": str(RETRY_AFTER_S)})
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            message = f"the request was not here within {self._body_timeout_s:g} s"
            raise Refusal(408, "too_slow", message) from None


async def _refuse_unread(refusal: Refusal, receive: Receive, send: Send) -> None:
    """Answer a request that was not read to its end, and close its connection."""
    response = refusal.response()
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    thrown_away = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            more = refusal.status != 408
            while more and thrown_away < _LINGER_BYTES:
                message = await receive()
                thrown_away += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"a request may have {most} bytes here")


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was received, for the application to receive it."""
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received


class GuardedServer(uvicorn.Server):
    """uvicorn, without connections that never say anything whole."""

    def __init__(self, config: uvicorn.Config, head_s: float = HEAD_S) -> None:
        super().__init__(config)
        self._every = max(1, round(head_s * _TICKS_A_SECOND))
        self._waiting: dict[Any, Any] = {}
        """Connections that had no request under way at the last look, each with its request before that."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """To be told to end is how a server ends: uvicorn would raise the signal again when all is answered."""
        self.force_exit = self.should_exit  # told twice
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if counter % self._every == 0:
            connections: list[Any] = [each for each in self.server_state.connections if hasattr(each, "cycle")]
            waiting = {each: each.cycle for each in connections if each.cycle is None or each.cycle.response_complete}
            for connection, cycle in waiting.items():
                if connection in self._waiting and self._waiting[connection] is cycle:
                    connection.transport.close()
            self._waiting = waiting
        return await super().on_tick(counter)
