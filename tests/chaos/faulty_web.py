"""Stand-ins of SerpApi, Jina Reader, a summariser, a retriever, picture hosts and the name server that knows these; a
share of calls goes wrong."""

import asyncio
import io
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from misbehaving import response
from PIL import Image


Send = Callable[[bytes], Awaitable[None]]


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()
FAULTS = (
    "500", "503", "429", "429 soon", "hang", "reset", "empty", "cut", "garbage", "html", "wrong json", "null",
    "drip", "huge", "wrong length",
)  # fmt: skip
NAME_FAULTS = (
    "no such name", "no address", "name hangs", "name is late", "rebound", "one of two rebound", "moved", "nonsense",
)  # fmt: skip
HERE, MOVED, INSIDE = "127.0.0.1", "127.0.0.3", "127.0.0.2"
"""The web's address, another public one at which nobody listens, and one that no page may lead to."""


class FaultyWeb:
    """One server for all of them, told apart by path, and one inside that counts who gets there.

    Args:
        share: Of the calls that go wrong.
    """

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self.port = 0
        self.intruders = 0
        """Connections to `INSIDE`."""
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    async def __aenter__(self) -> "FaultyWeb":
        self._servers = [await asyncio.start_server(self._talk, HERE, 0, backlog=1000)]
        self.port = self._servers[0].sockets[0].getsockname()[1]
        self._servers.append(await asyncio.start_server(self._intrude, INSIDE, self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://{HERE}:{self.port}"

    async def lookup(self, host: str, port: int) -> list[str]:
        """The addresses of a name; the same name may have others the next time."""
        if self._rng.random() >= self._share:
            return [HERE]
        fault = self._rng.choice(NAME_FAULTS)
        self.faults[fault] += 1
        if fault == "no such name":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if fault in ("name hangs", "name is late"):
            await asyncio.sleep(3600 if fault == "name hangs" else self._rng.random() * 0.3)
        return {
            "no address": [],
            "rebound": [INSIDE],
            "one of two rebound": [HERE, INSIDE],
            "moved": [MOVED],
            "nonsense": ["not an address"],
        }.get(fault, [HERE])

    async def _intrude(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.intruders += 1
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A cancelled handler would be reported by asyncio as a defect.
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
            if length:
                await reader.readexactly(int(length))
            path = head.split(" ")[1].partition("?")[0]
            self.calls[path.split("/")[1]] += 1
            await self._answer(path, writer)
        writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        if self._rng.random() < self._share:
            fault = self._rng.choice(FAULTS)
            self.faults[fault] += 1
            await self._go_wrong(fault, path, writer)
            return
        await asyncio.sleep(self._rng.random() * 0.02)
        writer.write(self._good(path))
        await writer.drain()

    async def _go_wrong(self, fault: str, path: str, writer: asyncio.StreamWriter) -> None:
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "reset":
            writer.transport.abort()
        elif fault == "drip":
            for byte in self._good(path):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.2)
        elif fault == "huge":
            writer.write(response(Content_Length="1000000000000"))
            while True:
                writer.write(b"[" * 65536)
                await writer.drain()
        else:
            writer.write(self._bad(fault, path))
            await writer.drain()

    def _bad(self, fault: str, path: str) -> bytes:
        good = self._good(path)
        return {
            "500": response(b"oops", status="500 Internal Server Error"),
            "503": response(status="503 Service Unavailable"),
            "429": response(b"slow down", status="429 Too Many Requests"),
            "429 soon": response(status="429 Too Many Requests", Retry_After="0"),
            "empty": b"",
            "cut": good[:-7],
            "garbage": bytes(self._rng.randrange(256) for _ in range(300)),
            "html": response(b"<html><h1>Sign in</h1></html>"),
            "wrong json": response(
                b'{"result": 7, "hits": "x", "data": [], "choices": {}}', Content_Type="application/json"
            ),
            "null": response(b"null", Content_Type="application/json"),
            "wrong length": good.replace(b"Content-Length: ", b"Content-Length: 9"),
        }[fault]

    def _good(self, path: str) -> bytes:
        if path.startswith("/pictures/"):
            return response(PICTURE, Content_Type="image/png")
        return response(json.dumps(self._json(path)).encode(), Content_Type="application/json")

    def _json(self, path: str) -> object:
        number = self._rng.randrange(10**9)
        links = [f"http://pages.example/{number}/{rank}" for rank in range(9)]
        pictures = f"http://pictures.example:{self.port}/pictures"
        return {
            "/search.json": {
                "search_metadata": {"status": "Success"},
                "organic_results": [{"title": "page", "snippet": "words", "link": link} for link in links],
                "visual_matches": [{"title": "seen", "thumbnail": f"{pictures}/{number}/{n}"} for n in range(5)],
            },
            "/image": {"image_id": "abc"},
            "/": {"data": {"title": "page", "content": "Many words. " * 50}},
            "/v1/chat/completions": {"choices": [{"message": {"content": "A few words."}}]},
            "/retrieve": {"result": [[{"document": {"id": "1", "contents": "title\ntext"}, "score": 1.0}]]},
        }[path]
