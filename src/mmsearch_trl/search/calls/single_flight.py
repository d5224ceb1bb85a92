"""Identical calls in flight are one call: a group of rollouts that looks up one image costs one search.

Every caller gets the one answer. A caller that is cancelled leaves the others undisturbed; when the last is gone, the
call is cancelled.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar


ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Call(Generic[ResultT]):
    """A call in flight and the number of callers that wait for it."""

    task: asyncio.Task[ResultT]
    waiters: int = 0


class CallCancelled(Exception):
    """The call was cancelled from outside, by `SingleFlight.cancel`."""


class SingleFlight(Generic[ResultT]):
    """The calls in flight, by key; all on one event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call[ResultT]] = {}

    async def join(self, key: str, begin: Callable[[], Coroutine[Any, Any, ResultT]]) -> tuple[ResultT, bool]:
        """Wait for the call under `key`, beginning it if there is none; returns its result and whether it was there.

        Raises:
            CallCancelled: by `cancel`.
            Exception: whatever the call raised.
        """
        call = self._calls.get(key)
        coalesced = call is not None
        if call is None:
            call = self._calls[key] = _Call(asyncio.create_task(begin()))
        call.waiters += 1
        try:
            # Not shield(): it would raise the call's own cancellation as if it were the caller's.
            await asyncio.wait({call.task})
        finally:
            call.waiters -= 1
            # A caller that comes later must not join a call that has ended or is being cancelled.
            if call.task.done() or not call.waiters:
                if self._calls.get(key) is call:
                    del self._calls[key]
                call.task.cancel()
        if call.task.cancelled():
            raise CallCancelled
        return call.task.result(), coalesced

    def cancel(self) -> None:
        """Cancel all calls; any thread may call this."""
        for call in list(self._calls.values()):
            with suppress(RuntimeError):  # the loop is closed, and the call with it
                call.task.get_loop().call_soon_threadsafe(call.task.cancel)
