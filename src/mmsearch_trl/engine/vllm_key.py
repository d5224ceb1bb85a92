"""The key of a vLLM server, asked for by all of its endpoints.

vLLM itself asks for it under `/v1`, `/v2`, `/inference` and `/cohere`, and nowhere else: whoever reaches the server
may replace its weights, call any method of its workers (`/collective_rpc`), put it to sleep, or read what it was
started with. `mmsearch vllm` gives vLLM this middleware; a server that is started in another way takes it by
`--middleware mmsearch_trl.engine.vllm_key.RequireKey`.

vLLM's process imports this file: it imports nothing of ours.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


KEY_VARIABLE = "VLLM_API_KEY"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = ("/health",)
"""Says whether the server is up, to who starts it or shares its work out, and nothing else."""


class RequireKey:
    """ASGI middleware: refuses what comes without the key in `VLLM_API_KEY`; asks for none where that is not set."""

    def __init__(self, app: Application) -> None:
        self._app = app
        key = os.environ.get(KEY_VARIABLE, "")
        self._expected = f"Bearer {key}".encode() if key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._expected or self._admits(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    def _admits(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        # A browser asks by OPTIONS, without a key, whether it may send one; no endpoint answers to it.
        if path in _OPEN or scope.get("method") == "OPTIONS":
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
