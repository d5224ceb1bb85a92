"""A proxy that spoils some of the turns that are asked of a vLLM server: with an HTTP 500, or by never answering."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web


TURN = "/inference/v1/generate"


class Proxy:
    """Forwards to a server.

    Args:
        errors: Share of the turns that are answered with HTTP 500, unseen by the server.
        hangs: Share of the turns that are never answered.
    """

    def __init__(self, server: str, *, errors: float = 0.0, hangs: float = 0.0, seed: int = 0) -> None:
        self.errors = self.hangs = self.turns = 0
        self._server = server
        self._shares = (errors, errors + hangs)
        self._rng = random.Random(seed)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The proxy's own address, while it is open."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # A client that gives up ends its handler, also one that would never answer.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession() as self._client:
            try:
                yield site.name
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        if request.path == TURN:
            self.turns += 1
            drawn = self._rng.random()
            if drawn < self._shares[0]:
                self.errors += 1
                return web.Response(status=500, text="injected")
            if drawn < self._shares[1]:
                self.hangs += 1
                await asyncio.sleep(3600)
        body = await request.read()
        headers = {"Content-Type": request.content_type}
        async with self._client.request(
            request.method, self._server + str(request.rel_url), data=body, headers=headers
        ) as answer:
            content = await answer.read()
            return web.Response(status=answer.status, body=content, content_type=answer.content_type)
