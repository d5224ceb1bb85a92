"""Identical calls in flight are one call: a group of rollouts that looks up one image costs one search.

Every caller gets the one answer. A caller that is cancelled leaves the others undisturbed; when the last is gone, the
call is cancelled.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mmsearch_trl.search.calls.per_loop import PerLoop


ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Flight(Generic[ResultT]):
    """A call in flight and the number of callers that wait for it."""

    task: asyncio.Task[ResultT]
    waiters: int = 0


class FlightCancelled(Exception):
    """The call was cancelled from outside, by `SingleFlight.cancel`."""


class SingleFlight(Generic[ResultT]):
    """The calls in flight, by key."""

    def __init__(self) -> None:
        self._by_loop: PerLoop[dict[str, _Flight[ResultT]]] = PerLoop(dict)

    async def join(self, key: str, begin: Callable[[], Coroutine[Any, Any, ResultT]]) -> tuple[ResultT, bool]:
        """Wait for the call under `key`, beginning it if there is none; returns its result and whether it was there.

        Raises:
            FlightCancelled: the runtime was closed.
            Exception: whatever the call raised.
        """
        flights = self._by_loop.here()
        flight = flights.get(key)
        coalesced = flight is not None
        if flight is None:
            flight = flights[key] = _Flight(asyncio.create_task(begin()))
        flight.waiters += 1
        try:
            # Not shield(): it would raise the flight's own cancellation as if it were the caller's.
            await asyncio.wait({flight.task})
        finally:
            flight.waiters -= 1
            # A caller that comes later must not join a call that has ended or is being cancelled.
            if flight.task.done() or not flight.waiters:
                if flights.get(key) is flight:
                    del flights[key]
                flight.task.cancel()
        if flight.task.cancelled():
            raise FlightCancelled
        return flight.task.result(), coalesced

    def cancel(self) -> None:
        """Cancel all calls, on whatever loop; any thread may call this."""
        for loop, flights in self._by_loop.open():
            for flight in list(flights.values()):
                loop.call_soon_threadsafe(flight.task.cancel)
