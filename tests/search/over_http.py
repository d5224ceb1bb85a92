"""The search server in a thread, and requests to it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import uvicorn

from mmsearch_trl.search.server import SearchServer
from mmsearch_trl.search.server_guard import HEAD_S, GuardedServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(
    backend: Any, *, image: Any = None, http: Any = "h11", head_s: float = HEAD_S, **options: Any
) -> Iterator[str]:
    """A server in a thread, on a given parser of HTTP, as `mmsearch serve` runs it; its address."""
    port = free_port()
    app = SearchServer(backend, image, **options).app
    config = uvicorn.Config(app, host="127.0.0.1", port=port, http=http, log_level="critical")
    server = GuardedServer(config, head_s)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, body: Any, path: str = "/retrieve", **headers: str) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession(headers={"Content-Type": "application/json"} | headers) as session,
            session.post(url + path, data=data) as response,
        ):
            return response.status, await response.json()

    return asyncio.run(run())


def get(url: str, path: str) -> str:
    async def run() -> str:
        async with aiohttp.ClientSession() as session, session.get(url + path) as response:
            return await response.text()

    return asyncio.run(run())
