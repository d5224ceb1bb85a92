"""Our scheduler and the lockstep one, over the same code: they differ in whether rollouts wait for each other.

* `ours`: every trajectory on its own (`rollout.loop.run_batch`).
* `lockstep`: all turns of a wave at once, then all tool calls of the wave at once, then the next wave. A fair
  baseline: its tools are gathered and its requests are in flight together; only waiting for the slowest is left.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from time import perf_counter

from benchmarks.rollout.scenario import Scenario
from benchmarks.rollout.script import samplings
from benchmarks.rollout.spans import Spans

from mmsearch_trl.core.action import Action
from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools, run_batch, run_trajectory
from mmsearch_trl.search.calls.record import CallRecord


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a rollout comes to: prompt, completion with its replies, and which of it was sampled."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mask: tuple[int, ...]

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Tokens":
        return cls(trajectory.prompt_ids, tuple(trajectory.completion_ids), tuple(trajectory.loss_mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One timed run of a scheduler.

    Attributes:
        started: On the clock of `time.perf_counter`, as all spans are.
        seconds: From the first submit to the last rollout's end.
        engine: When at least one request was under way, as the client saw it.
        tools: The tool calls.
        tool_seconds: Per rollout, its calls in order.
        row_seconds: Per rollout, from the common start to its end; empty where the scheduler does not tell.
        cpu_seconds: Processor time by process: the client, and the server's.
    """

    scheduler: str
    started: float
    seconds: float
    tokens: tuple[Tokens, ...]
    engine: Spans
    tools: Spans
    tool_seconds: tuple[tuple[float, ...], ...]
    row_seconds: tuple[float, ...] = ()
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def engine_busy(self) -> float:
        return self.engine.covered() / self.seconds

    @property
    def tool_overlap(self) -> float:
        """Share of the time with a tool call under way in which the engine worked as well."""
        return self.tools.shared(self.engine) / waited if (waited := self.tools.covered()) else 1.0

    def row_percentiles(self) -> tuple[float, float] | None:
        """p50 and p95 of a rollout's time."""
        cuts = quantiles(self.row_seconds, n=20, method="inclusive") if self.row_seconds else None
        return (cuts[9], cuts[18]) if cuts else None


class Gate:
    """Lets nobody through before all who are still under way have come; an open gate holds nobody up."""

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._waiting = 0
        self._opened = asyncio.Event()

    async def pass_through(self) -> None:
        opened = self._opened
        self._waiting += 1
        self._open_if_all_came()
        await opened.wait()

    def leave(self) -> None:
        self._parties -= 1
        self._open_if_all_came()

    def _open_if_all_came(self) -> None:
        if self._waiting >= self._parties:
            self._opened.set()
            self._opened, self._waiting = asyncio.Event(), 0


class Watched:
    """An engine and tools that record when they work and, given a gate, wait for the wave."""

    def __init__(self, engine: Engine, tools: Tools, gate: Gate | None) -> None:
        self._engine, self._tools, self._gate = engine, tools, gate
        self.engine_spans, self.tool_spans = Spans(), Spans()

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        await self._wave()
        with self.engine_spans.recorded():
            return await self._engine.generate(token_ids, images, sampling)

    async def answer(self, action: Action, trajectory: Trajectory) -> Observation:
        await self._wave()
        with self.tool_spans.recorded():
            return await self._tools.answer(action, trajectory)

    def drain_records(self) -> list[CallRecord]:
        return self._tools.drain_records()

    async def disconnect(self) -> None:
        await self._tools.disconnect()

    async def _wave(self) -> None:
        if self._gate is not None:
            await self._gate.pass_through()


async def run_ours(
    scenario: Scenario, engine: Engine, protocol: MMSearchProtocol, tools: Tools, limits: Limits
) -> Run:
    watched = Watched(engine, tools, None)
    tasks, sampling = scenario.tasks(), samplings(scenario, limits)
    start = perf_counter()
    trajectories = await run_batch(tasks, watched, protocol, watched, limits, sampling)
    return _run("ours", start, trajectories, watched)


async def run_lockstep(
    scenario: Scenario, engine: Engine, protocol: MMSearchProtocol, tools: Tools, limits: Limits
) -> Run:
    gate = Gate(scenario.k)
    watched = Watched(engine, tools, gate)

    async def one(task, sampling):
        try:
            return await run_trajectory(task, watched, protocol, watched, limits, sampling)
        finally:
            gate.leave()

    pairs = zip(scenario.tasks(), samplings(scenario, limits), strict=True)
    start = perf_counter()
    trajectories = await asyncio.gather(*(one(task, sampling) for task, sampling in pairs))
    return _run("lockstep", start, trajectories, watched)


def _run(scheduler: str, start: float, trajectories: Sequence[Trajectory], watched: Watched) -> Run:
    seconds = perf_counter() - start
    for trajectory in trajectories:
        if trajectory.failure is not None:
            raise RuntimeError(f"{trajectory.task.id} failed: {trajectory.failure.message}")
    return Run(
        scheduler=scheduler,
        started=start,
        seconds=seconds,
        tokens=tuple(Tokens.of(trajectory) for trajectory in trajectories),
        engine=watched.engine_spans,
        tools=watched.tool_spans,
        tool_seconds=tuple(tuple(seen.seconds for seen in each.observations) for each in trajectories),
        row_seconds=tuple(each.seconds for each in trajectories),
    )
