"""A few processes that work on what strangers made (`core/worker.py`), and are killed when they are late.

They are started when the first job comes and are used again. One that is late, dies, or works for a caller that has
left is killed; the next job starts another.
"""

import asyncio

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.core.worker_process import STARTING_SECONDS, WorkerProcess
from mmsearch_trl.search.calls.threads import call_blocking


class WorkerPool:
    """Runs a function of bytes in processes of its own.

    Args:
        function: `package.module:name`.
        first_job: What every process is given when it starts: the first real job must not pay for loading libraries.
        processes: That work at a time; further jobs wait.
        memory: Bytes of address space that each may take.
    """

    def __init__(self, function: str, first_job: bytes, *, processes: int, memory: int) -> None:
        self._function = function
        self._first_job = first_job
        self._processes = processes
        self._memory = memory
        self._idle: list[WorkerProcess] = []
        self._left_starting: list[asyncio.Task[WorkerProcess]] = []
        """Whose callers could not wait any longer: the next ones take them."""
        self._slots = asyncio.Semaphore(processes)

    async def ask(self, job: bytes, seconds: float) -> bytes:
        """What the function makes of a job, in so many seconds, waiting for a free process and starting one aside.

        Raises:
            TimeoutError: it took longer.
            EOFError: the process died of it.
            SearchError: `UNAVAILABLE`: no process could be started.
        """
        async with self._slots:
            worker = await self._free()
            whole = False
            try:
                answer = await asyncio.wait_for(call_blocking(worker.ask, job), seconds)
                whole = True
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                raise EOFError from None  # it died before it had read the job
            finally:
                # A worker that is still busy would answer the next job with this one's answer.
                if whole:
                    self._idle.append(worker)
                else:
                    worker.kill()
            return answer

    def close(self) -> None:
        """End the workers; a job under way fails. The next job, on whatever event loop, starts them again."""
        self._slots = asyncio.Semaphore(self._processes)
        while self._left_starting:
            self._left_starting.pop().cancel()
        while self._idle:
            self._idle.pop().kill()

    async def _free(self) -> WorkerProcess:
        if self._idle:
            return self._idle.pop()
        start = self._left_starting.pop() if self._left_starting else asyncio.create_task(self._started())
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            if not start.cancelled():
                self._left_starting.append(start)
            raise

    async def _started(self) -> WorkerProcess:
        """A worker that has done its first job."""
        worker = await call_blocking(WorkerProcess, self._function, self._memory)
        try:
            await asyncio.wait_for(call_blocking(worker.ask, self._first_job), STARTING_SECONDS)
        except BaseException as error:
            worker.kill()
            if isinstance(error, EOFError | OSError):  # a TimeoutError is one
                raise SearchError(FailureKind.UNAVAILABLE, "a process for foreign data could not be started") from None
            raise
        return worker
