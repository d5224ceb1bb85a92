"""Rollouts for synchronous code: one event loop for a run, in which trajectories, tools and their clients live."""

import time
from collections.abc import Coroutine, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.errors import RunEnded, UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.engine.base import TimedEngine
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools, named_sampling, run_batch, run_trajectory, unbegun
from mmsearch_trl.rollout.stream import Ended, Job, TrajectoryStream
from mmsearch_trl.rollout.toolbox import Toolbox
from mmsearch_trl.search.calls.record import CallRecord


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """A batch of rollouts of one rank.

    Attributes:
        trajectories: In the order of their tasks.
        seconds: Wall time.
        engine_busy_seconds: Of these, time spent generating.
        calls: Searches that were made meanwhile.
    """

    trajectories: list[Trajectory]
    seconds: float
    engine_busy_seconds: float
    calls: list[CallRecord]


class Rollouter:
    """Rolls out tasks with a protocol, tools and limits, on whichever engine it is given.

    Args:
        tools: What the searches of a `SearchProtocol` are put to; None for another protocol.
        max_in_flight: Trajectories that run at a time; None for all of a batch.

    Attributes:
        tool_names: Of what may be called besides the searches; None where nothing can be called, and nothing is said
            of searches anywhere.

    Raises:
        UserError: there are tools and a protocol that calls none, or the other way round.
    """

    def __init__(
        self, protocol: TurnProtocol, tools: Tools | None, limits: Limits, *, max_in_flight: int | None = None
    ) -> None:
        self.protocol = protocol
        self.tools = tools
        self.tool_names: tuple[str, ...] | None = None
        self._toolbox: Toolbox | None = None
        if isinstance(protocol, SearchProtocol):
            if tools is None:
                raise UserError(f"search: {type(protocol).__name__} searches: give it its tools")
            self.tool_names = tuple(tool.name for tool in protocol.tools)
            self._toolbox = Toolbox(tools, protocol.tools)
        elif tools is not None:
            raise UserError(f"search: {type(protocol).__name__} calls no tool: leave it out")
        self.limits = limits
        self.loop = BackgroundLoop()
        self._max_in_flight = max_in_flight
        self._abandoned = False
        self._running: Future[Any] | None = None

    def run(
        self,
        tasks: Sequence[Task],
        engine: TimedEngine,
        names: Sequence[str],
        temperature: float,
        *,
        close_share: float = 1.0,
    ) -> RolloutReport:
        """Roll out tasks; each comes back exactly once.

        Args:
            names: One per task; the same name gives the same trajectory under the same weights.
            close_share: As for `run_batch`.

        Raises:
            RunEnded: it was abandoned.
        """
        started, busy = time.perf_counter(), engine.busy_seconds
        self._drain_records()
        trajectories = self._wait_for(
            run_batch(
                tasks,
                engine,
                self.protocol,
                self._toolbox,
                self.limits,
                [self.sampling(name, temperature) for name in names],
                max_in_flight=self._max_in_flight,
                close_share=close_share,
            )
        )
        return RolloutReport(
            trajectories=trajectories,
            seconds=time.perf_counter() - started,
            engine_busy_seconds=engine.busy_seconds - busy,
            calls=self._drain_records(),
        )

    def stream(
        self, jobs: Iterable[Job], engine: TimedEngine, temperature: float, places: int, *, proven: bool = False
    ) -> Generator[list[Ended], None, None]:
        """Trajectories as they end, each once, as many at a time as have ended meanwhile.

        Args:
            jobs: Taken from one by one, in the thread of the event loop.
            places: Trajectories in flight at a time.
            proven: As for `TrajectoryStream`.

        Raises:
            RunEnded: it was abandoned.
        """

        def begin(task: Task) -> Trajectory:
            return unbegun(task, self.protocol)

        def roll_out(job: Job, trajectory: Trajectory) -> Coroutine[Any, Any, Trajectory]:
            sampling = self.sampling(job.name, temperature)
            return run_trajectory(job.task, engine, self.protocol, self._toolbox, self.limits, sampling, trajectory)

        stream = TrajectoryStream(jobs, begin, roll_out, places, proven=proven)
        try:
            while ended := self._wait_for(stream.next()):
                yield ended
                self._drain_records()  # nobody reads them here, and they would pile up
        finally:
            self.loop.run(stream.close())

    def abandon(self) -> None:
        """Give up the rollouts under way, and all that would follow; a signal's handler may call it."""
        self._abandoned = True
        if self._running is not None:
            self._running.cancel()

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._running = future = self.loop.start(coroutine)
        if self._abandoned:
            future.cancel()
        try:
            return future.result()
        except CancelledError:
            if self._abandoned:
                raise RunEnded from None
            raise
        finally:
            self._running = None
            future.cancel()

    def sampling(self, name: str, temperature: float) -> SamplingParams:
        return named_sampling(self.limits, name, temperature)

    def close(self) -> None:
        """Close the connections of the tools."""
        if self.tools is not None:
            self.loop.run(self.tools.disconnect())

    def _drain_records(self) -> list[CallRecord]:
        return [] if self.tools is None else self.tools.drain_records()
