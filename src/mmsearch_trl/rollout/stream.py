"""Rollouts of any number of tasks, a bounded number at a time: no trajectory waits for others to end.

A task is taken from its iterator when a place is free, and what has ended is handed out at once. Neither is kept, so
that memory depends on the places and not on the tasks.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.rollout.loop import settled


@dataclass(frozen=True, slots=True)
class Job:
    """A task to be rolled out.

    Attributes:
        number: Tells it from the others; those that end together are handed out in this order.
        name: The same name gives the same trajectory under the same weights.
    """

    number: int
    task: Task
    name: str


Ended = tuple[Job, Trajectory]


class TrajectoryStream:
    """Trajectories as they end, on one event loop.

    An unforeseen error ends its own trajectory only, as in `run_batch`. As long as nothing has ended in another way,
    such trajectories are held back: when there are as many as places, or no task is left, the first error is raised,
    for that is a defect and not bad luck.

    Args:
        jobs: Taken from one by one.
        begin: Makes the empty trajectory of a task.
        roll_out: Fills it.
        places: Trajectories in flight at a time.
        proven: Rollouts are known to work, so that no defect is assumed.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        begin: Callable[[Task], Trajectory],
        roll_out: Callable[[Job, Trajectory], Coroutine[Any, Any, Trajectory]],
        places: int,
        *,
        proven: bool = False,
    ) -> None:
        self._jobs = iter(jobs)
        self._begin = begin
        self._roll_out = roll_out
        self._places = places
        self._proven = proven
        self._running: dict[asyncio.Task[Trajectory], Ended] = {}
        self._held: list[tuple[Ended, BaseException]] = []

    async def next(self) -> list[Ended]:
        """What has ended since the last call, at least one trajectory; empty when all were handed out."""
        self._fill()
        while self._running:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            ended = sorted(((self._running.pop(task), task) for task in done), key=lambda item: item[0][0].number)
            self._fill()  # the engine has work while the caller looks at these
            if ready := self._settle([(item, _outcome(task)) for item, task in ended]):
                return ready
        if self._held:
            raise self._held[0][1]
        return []

    async def close(self) -> None:
        """Cancel what is in flight."""
        running = list(self._running)
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _fill(self) -> None:
        while len(self._running) < self._places and (job := next(self._jobs, None)) is not None:
            trajectory = self._begin(job.task)
            self._running[asyncio.create_task(self._roll_out(job, trajectory))] = (job, trajectory)

    def _settle(self, ended: list[tuple[Ended, Trajectory | BaseException]]) -> list[Ended]:
        """The trajectories to hand out; none while there may be a defect."""
        errors = [(item, outcome) for item, outcome in ended if isinstance(outcome, BaseException)]
        if not self._proven and len(errors) == len(ended):
            self._held += errors
            if len(self._held) >= self._places:
                raise self._held[0][1]
            return []
        self._proven = True
        held, self._held = self._held, []
        return [(job, settled(trajectory, outcome)) for (job, trajectory), outcome in [*held, *ended]]


def _outcome(task: asyncio.Task[Trajectory]) -> Trajectory | BaseException:
    if task.cancelled():
        return asyncio.CancelledError()  # a tool's own
    return task.exception() or task.result()
