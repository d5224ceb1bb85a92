"""An event loop in a thread of its own, so that synchronous trainer code can run coroutines that share clients."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar


T = TypeVar("T")


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, and also where this thread's own event loop is running, as in a notebook: then on another."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, thread_name_prefix="run_to_end") as another:
        return another.submit(asyncio.run, coroutine).result()


class BackgroundLoop:
    """Runs coroutines to their end on one loop that lives as long as the process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="rollout", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the coroutine's result; an interrupt of the caller cancels it."""
        future = self.start(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run the coroutine meanwhile."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
