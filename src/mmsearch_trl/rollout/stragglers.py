"""Closing a batch before its slowest trajectories: the share that has finished is kept, the rest is cut off cleanly.

A trajectory that is cut off keeps every turn it sampled, with the log-probs recorded then, and can go on in a later
batch: `run_trajectory` takes it up where it was, a search in progress is asked again, and no token is sampled twice.
A failure does not count as finished, so an engine that fails fast never closes a batch over those still at work.
"""

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.trajectory import Trajectory


Run = Coroutine[Any, Any, Trajectory]
Outcome = Trajectory | BaseException | None
"""What became of a run: its trajectory, what it raised, or None when it was cut off."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A trajectory of an earlier batch that goes on, and how its turns are sampled."""

    trajectory: Trajectory
    sampling: SamplingParams


async def finish_share(
    runs: Sequence[Run], share: float, beside: Sequence[Run] = ()
) -> tuple[list[Outcome], list[Outcome]]:
    """Run all at once until `share` of `runs` has finished, or all have ended; then cancel what is left, and await it.

    Args:
        beside: Runs that nobody waits for; they begin first.

    Returns:
        The outcomes of `runs` and of `beside`, in order.
    """
    older = [asyncio.create_task(run) for run in beside]
    tasks = [asyncio.create_task(run) for run in runs]
    close = _Close(len(tasks), math.ceil(share * len(tasks) - 1e-9))  # 0.07 x 100 is a little more than 7
    for task in tasks:
        task.add_done_callback(close.count)
    cut: set[asyncio.Task[Trajectory]] = set()
    try:
        await close.closed.wait()
    finally:
        cut = {task for task in (*tasks, *older) if not task.done()}
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
    return [_outcome(task, cut) for task in tasks], [_outcome(task, cut) for task in older]


class _Close:
    """Counts runs down to the end of the batch."""

    def __init__(self, running: int, wanted: int) -> None:
        self.closed = asyncio.Event()
        self._running = running
        self._wanted = wanted
        if running == 0:
            self.closed.set()

    def count(self, task: asyncio.Task[Trajectory]) -> None:
        self._running -= 1
        finished = not task.cancelled() and task.exception() is None and not task.result().aborted
        self._wanted -= finished
        if self._wanted <= 0 or self._running == 0:
            self.closed.set()


def _outcome(task: asyncio.Task[Trajectory], cut: set[asyncio.Task[Trajectory]]) -> Outcome:
    if task.cancelled():
        return None if task in cut else asyncio.CancelledError()
    return task.exception() or task.result()
