"""An event loop whose clock runs only while nothing else does: a test of ten seconds takes as long as its work."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from mmsearch_trl.search.calls import threads


ResultT = TypeVar("ResultT")


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        # What is on its way over loopback, or worked on by a thread, comes before any later moment.
        ready = super().select(0.03)
        while not ready and (timeout is None or threads._running._value < threads._MAX_THREADS):
            ready = super().select(0.01)
        if not ready:
            self.now += timeout or 0.0
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def timed(work: Coroutine[Any, Any, ResultT]) -> tuple[ResultT, float]:
    """What a coroutine gives, and how many of its seconds went by."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work), runner.get_loop().time()
