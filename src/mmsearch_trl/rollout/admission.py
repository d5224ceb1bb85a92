"""The gate before a rollout: trajectories begin in the order of their tasks, as many at a time as the cap allows.

A trajectory that has begun is never held up again, in the engine or in a tool: it keeps its place until it ends, since
its prefix lies in the engine's cache. Tools have slots of their own (`search.max_concurrency`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from mmsearch_trl.engine.pressure import Pressure, PressureSource
from mmsearch_trl.rollout.backpressure import STALE_SECONDS, Backpressure


logger = logging.getLogger(__name__)


class Admission:
    """One batch's gate, an asynchronous context manager: the engine is read while it is entered.

    Args:
        backpressure: Decides the cap, and outlives the batch.
        source: The engine, where it can tell how full it is; without one the cap stays as it is.
        interval_s: Seconds between readings.
    """

    def __init__(
        self, backpressure: Backpressure, source: PressureSource | None = None, *, interval_s: float = 0.5
    ) -> None:
        self.in_flight = 0
        self.lowest_cap = backpressure.cap
        self._backpressure = backpressure
        self._source = source
        self._interval_s = interval_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._source is not None:
            self._reader = asyncio.create_task(self._keep_reading(self._source))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, hold it, give it back; first come, first served."""
        if self._waiting or self.in_flight >= self._backpressure.cap:
            await self._wait()
        else:
            self.in_flight += 1
        try:
            yield
        finally:
            self._leave()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was given in the instant of the cancellation
                self._leave()
            raise

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        """Give free places to those who wait; a place counts from here on, before its holder wakes."""
        while self._waiting and self.in_flight < self._backpressure.cap:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.in_flight += 1
                turn.set_result(None)

    async def _keep_reading(self, source: PressureSource) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            reading = await self._read(source)
            cap = self._backpressure.observe(reading, in_flight=self.in_flight, now=time.monotonic())
            self.lowest_cap = min(self.lowest_cap, cap)
            self._admit()

    async def _read(self, source: PressureSource) -> Pressure | None:
        try:
            async with asyncio.timeout(STALE_SECONDS):
                return await source.pressure()
        except Exception as error:  # an engine that cannot be read is not one that is full
            logger.debug("No reading of the engine: %s: %s", type(error).__name__, error)
            return None
