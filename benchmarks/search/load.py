"""Clients that ask one after the other without a pause, and what that comes to."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp
import numpy as np


@dataclass(frozen=True, slots=True)
class Load:
    """How a server is asked: by so many clients at a time, with so many queries in a request."""

    clients: int
    queries: int = 1


LOADS = {"1 client": Load(1), "16 clients": Load(16), "64 queries at once": Load(1, 64)}


@dataclass(slots=True)
class Sample:
    """What was measured: the seconds of each request, and what the measurement took."""

    load: Load
    requests: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Queries answered a second."""
        return len(self.requests) * self.load.queries / self.seconds

    def ms(self, percentile: float) -> float:
        return 1e3 * float(np.percentile(self.requests, percentile))


def measure(url: str, queries: Sequence[str], load: Load, k: int, seconds: float) -> Sample:
    """Ask for so many seconds; a request that is under way then is waited for and counts."""
    return asyncio.run(_measure(url, queries, load, k, seconds))


def warm_up(url: str, queries: Sequence[str], load: Load, k: int) -> None:
    """One request that does not count."""
    measure(url, queries, Load(1, load.queries), k, 0.0)


async def _measure(url: str, queries: Sequence[str], load: Load, k: int, seconds: float) -> Sample:
    sample, following = Sample(load), itertools.cycle(queries)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = perf_counter()

        async def client() -> None:
            while not sample.requests or perf_counter() - start < seconds:
                begun = perf_counter()
                await _ask(session, url, [next(following) for _ in range(load.queries)], k)
                sample.requests.append(perf_counter() - begun)

        await asyncio.gather(*(client() for _ in range(load.clients)))
        sample.seconds = perf_counter() - start
    return sample


def answers(url: str, queries: Sequence[str], k: int) -> list[list[int]]:
    """The numbers of the passages that each query finds, best first."""

    async def ask() -> list[list[int]]:
        async with aiohttp.ClientSession() as session:
            found = [await _ask(session, url, [query], k) for query in queries]
        return [[int(row["document"]["id"]) for row in rows] for [rows] in found]

    return asyncio.run(ask())


async def _ask(session: aiohttp.ClientSession, url: str, queries: Sequence[str], k: int) -> list[Any]:
    async with session.post(url, json={"queries": queries, "topk": k, "return_scores": True}) as response:
        response.raise_for_status()
        found = (await response.json())["result"]
    assert len(found) == len(queries)
    return found
