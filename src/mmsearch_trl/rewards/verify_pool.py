"""Processes in which answers are judged, each answer within a time that nothing can stretch.

An expression such as `9^{9^{9^{9}}}` keeps sympy busy for ever, in C, where no signal reaches it, and takes all memory
there is. So a process that is late is killed and another started; the rest of a batch does not notice. Never threads:
they cannot be killed.
"""

import json
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from mmsearch_trl.core.boundaries import missing
from mmsearch_trl.core.worker_process import STARTING_SECONDS, WorkerProcess
from mmsearch_trl.rewards.judging import Job


MEMORY = 2 << 30
"""Bytes of address space of one process."""
_MOST = 16
_FUNCTION = "mmsearch_trl.rewards.math_worker:judge"
_FIRST_JOB = Job(task="right", answer="$1$", golds=("1",)).to_bytes()
"""Loads the libraries, within the time that starting may take."""


class VerifyPool:
    """Judges answers by math-verify; processes are started when the first answers come.

    Args:
        seconds: That one answer may take.
        processes: By default as many as there are processors for this rank.
    """

    def __init__(self, *, seconds: float, processes: int | None = None) -> None:
        self._seconds = seconds
        self._processes = processes or _processors()
        self._idle: deque[WorkerProcess] = deque()
        self._threads: ThreadPoolExecutor | None = None  # one waits for each process

    def verdicts(self, jobs: Sequence[Job]) -> list[bool | None]:
        """What each job comes to, in their order; None where it was given up."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._processes, thread_name_prefix="verify")
        return list(self._threads.map(self._verdict, [job.to_bytes() for job in jobs]))

    def close(self) -> None:
        """End the processes; the next jobs start them again."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
        while self._idle:
            self._idle.pop().kill()

    def _verdict(self, job: bytes) -> bool | None:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._started()
        answer = worker.ask_within(job, self._seconds)
        if answer is None:
            return None
        self._idle.append(worker)
        return json.loads(answer)

    def _started(self) -> WorkerProcess:
        worker = WorkerProcess(_FUNCTION, MEMORY)
        if worker.ask_within(_FIRST_JOB, STARTING_SECONDS) is None:
            raise RuntimeError("no process that judges answers could be started")
        return worker


def check_installed() -> None:
    """
    Raises:
        UserError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise missing("scoring mathematical answers", "math", why="No module named 'math_verify'")


def _processors() -> int:
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST, max(1, len(os.sched_getaffinity(0)) // ranks))
