"""The HTTP client under every search: aiohttp, which is used, against httpx2, in one run on the same work.

    python benchmarks/http_clients.py [--out runs/bench/http_clients.json]

A server process on the loopback address answers with JSON, at once or after 100 ms as a search engine does. Each
client asks it with 64 calls at a time, in turns, several rounds; wall and processor seconds are medians.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
from aiohttp import web


CONCURRENCY = 64
ROUNDS = 7
BODY = {"result": [[{"document": {"id": str(i), "contents": "word " * 100}, "score": 1.0} for i in range(20)]]}

Ask = Callable[[str, int], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Median seconds of one client for all calls of a round."""

    wall_s: float
    processor_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    calls: int
    delay_ms: int
    clients: dict[str, Timing]
    wall_ratio: float
    """httpx2 / aiohttp."""
    processor_ratio: float


async def with_aiohttp(url: str, calls: int) -> None:
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask() -> None:
            async with session.post(url, json={"queries": ["who"]}) as answer:
                check(await answer.json())

        await in_turns(ask, calls)


async def with_httpx2(url: str, calls: int) -> None:
    limits = httpx2.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def ask() -> None:
            check((await client.post(url, json={"queries": ["who"]})).json())

        await in_turns(ask, calls)


async def in_turns(ask: Callable[[], Awaitable[None]], calls: int) -> None:
    """`calls` calls, `CONCURRENCY` at a time."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await ask()

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def check(answer: Any) -> None:
    assert len(answer["result"][0]) == 20


def compare(port: int, calls: int, delay_ms: int) -> Comparison:
    clients: dict[str, Ask] = {"aiohttp": with_aiohttp, "httpx2": with_httpx2}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    url = f"http://127.0.0.1:{port}/{delay_ms}"
    for number in range(ROUNDS + 1):
        for name, ask in clients.items():
            began, used = time.perf_counter(), time.process_time()
            asyncio.run(ask(url, calls))
            if number:  # the first round is a warm-up
                seconds[name].append((time.perf_counter() - began, time.process_time() - used))
    timings = {
        name: Timing(wall_s=statistics.median(w for w, _ in pairs), processor_s=statistics.median(p for _, p in pairs))
        for name, pairs in seconds.items()
    }
    ours, other = timings["aiohttp"], timings["httpx2"]
    return Comparison(
        calls=calls,
        delay_ms=delay_ms,
        clients=timings,
        wall_ratio=other.wall_s / ours.wall_s,
        processor_ratio=other.processor_s / ours.processor_s,
    )


def serve(port: Any) -> None:
    """The server process; tells its port."""
    body = json.dumps(BODY).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        if delay := int(request.match_info["delay"]):
            await asyncio.sleep(delay / 1000)
        return web.Response(body=body, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/{delay}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/http_clients.json"))
    options = parser.parse_args()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(sender,), daemon=True)
    server.start()
    try:
        port = receiver.recv()
        results = [compare(port, calls, delay) for calls, delay in ((256, 100), (2048, 0))]
    finally:
        server.terminate()
    versions = {name: version(name) for name in ("aiohttp", "httpx2")} | {"python": platform.python_version()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"versions": versions, "results": [asdict(r) for r in results]}, indent=1))
    for result in results:
        for name, timing in result.clients.items():
            print(
                f"{result.calls} calls, {result.delay_ms} ms: {name} {timing.wall_s:.2f} s, "
                f"{timing.processor_s:.2f} s of processor"
            )
        print(f"  httpx2 / aiohttp: {result.wall_ratio:.2f}x wall, {result.processor_ratio:.2f}x processor")


if __name__ == "__main__":
    main()
