"""Calls that are cheaper together: what is asked while one batch is computed makes up the next."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Batched(Generic[ItemT, ResultT]):
    """Runs a function over whatever was asked at the same time, on a daemon thread of its own.

    Args:
        function: One result per item, in their order.
        most: Items of a batch.
    """

    def __init__(self, function: Callable[[Sequence[ItemT]], Sequence[ResultT]], most: int) -> None:
        self._function = function
        self._most = most
        self._waiting: queue.SimpleQueue[tuple[ItemT, Future[ResultT]]] = queue.SimpleQueue()
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None

    async def __call__(self, item: ItemT) -> ResultT:
        """The item's result.

        Raises:
            Exception: whatever the function raised for the item alone.
        """
        future: Future[ResultT] = Future()
        with self._started:
            if self._thread is None or not self._thread.is_alive():  # a fork leaves threads behind
                self._thread = threading.Thread(target=self._run, name="mmsearch-batches", daemon=True)
                self._thread.start()
        self._waiting.put((item, future))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get())
            # What was given up while it waited is not computed.
            batch = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                self._compute(batch)

    def _compute(self, batch: Sequence[tuple[ItemT, "Future[ResultT]"]]) -> None:
        try:
            results = self._function([item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # what breaks a batch is one of its items: the others have nothing to do with it
                self._compute([one])
