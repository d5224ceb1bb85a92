"""Blocking calls as awaitables, on daemon threads of their own.

The event loop's own thread pool will not do: a call that never returns would hold one of its few threads for ever and
then keep the interpreter from exiting. Here the caller that gives up simply leaves; the thread, once its call returns,
finds nobody waiting and ends. The number of threads left behind is bounded.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind


ResultT = TypeVar("ResultT")

_MAX_THREADS = 256
_running = threading.Semaphore(_MAX_THREADS)


async def call_blocking(function: Callable[..., ResultT], *args: Any) -> ResultT:
    """Run `function(*args)` on a thread and wait for it; cancelling the wait abandons the call.

    Raises:
        SearchError: as many calls as there may be threads are running, most likely because none of them ever returned.
        Exception: whatever the function raised.
    """
    if not _running.acquire(blocking=False):
        raise SearchError(FailureKind.UNAVAILABLE, f"{_MAX_THREADS} blocking calls are running and none has returned")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def run() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as raised:
            error = raised
        finally:
            _running.release()
        # RuntimeError: the loop was closed while the call ran, so nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, future, result, error)

    threading.Thread(target=run, name="mmsearch-call", daemon=True).start()
    return await future


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # the caller has left
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:  # asyncio refuses StopIteration in a future, and a thread's SystemExit is not the program's
        future.set_exception(RuntimeError(f"a blocking call ended with {type(error).__name__}"))
