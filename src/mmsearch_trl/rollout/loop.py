"""The rollout: one readable coroutine per trajectory, on which the whole system hangs.

Every trajectory runs on its own and nothing waits for the slowest. A tool that fails is a value in the trajectory; an
engine that fails ends that trajectory alone, as a typed failure.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.protocol.chat import Encoded
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.calls.record import CallRecord


logger = logging.getLogger(__name__)


class Tools(Protocol):
    """What answers a call; `search.runtime.SearchRuntime` is one. Failures are values in the observation."""

    async def answer(self, action: Action, trajectory: Trajectory) -> Observation:
        """Carry out the call that the newest turn of a trajectory asks for; that turn is not yet in `trajectory`."""
        ...

    def drain_records(self) -> list[CallRecord]:
        """Searches since the last drain, for metrics."""
        ...

    async def disconnect(self) -> None:
        """Close the connections of the running event loop."""
        ...


def named_sampling(limits: Limits, name: str, temperature: float) -> SamplingParams:
    """How a trajectory is sampled whose seed follows from a name alone, such as run seed, step and row number."""
    seed = random.Random(name).getrandbits(63)
    return SamplingParams(max_tokens=limits.max_turn_tokens, temperature=temperature, seed=seed)


async def run_trajectory(
    task: Task,
    engine: Engine,
    protocol: TurnProtocol,
    tools: Tools | None,
    limits: Limits,
    sampling: SamplingParams,
    trajectory: Trajectory | None = None,
) -> Trajectory:
    """Roll out one task.

    Args:
        tools: Answer the calls of a `SearchProtocol`; None for another protocol, which has none.
        sampling: Of every turn; `max_tokens` is set per turn by `limits`, and each turn has a seed of its own that
            depends on `sampling.seed` and the turn's number alone.
        trajectory: One of this task without turns, to be filled in place: whoever cancels this coroutine finds in it
            every turn that was sampled. A prompt that it holds already is not encoded again.
    """
    started = time.perf_counter()
    trajectory = trajectory or unbegun(task, protocol)
    searching = Searching.of(protocol, tools, searches=trajectory.has_tools)
    rollout = _Rollout(engine, protocol, searching, limits, sampling, trajectory)
    try:
        if not trajectory.prompt_ids:
            prompt = protocol.prompt(task)
            trajectory.prompt, trajectory.prompt_ids = prompt.parts, prompt.token_ids
        while trajectory.stop is None:
            turn = await rollout.sample()
            if turn is not None:
                await rollout.react(turn)
    finally:
        trajectory.seconds = time.perf_counter() - started
    return limits.finish(trajectory, protocol.chat)


def unbegun(task: Task, protocol: TurnProtocol) -> Trajectory:
    return Trajectory(task=task, prompt=(), prompt_ids=(), has_tools=isinstance(protocol, SearchProtocol))


class Searching(NamedTuple):
    """How calls are read and replied to, and what answers them."""

    protocol: SearchProtocol
    tools: Tools

    @classmethod
    def of(cls, protocol: TurnProtocol, tools: Tools | None, *, searches: bool) -> "Searching | None":
        """None where the protocol knows no calls: unless it `searches`, which takes long to find out.

        Raises:
            ValueError: it does, and nothing answers them; or it does not, and something would.
        """
        if searches and tools is not None:
            return cls(cast(SearchProtocol, protocol), tools)
        if searches or tools is not None:
            name = type(protocol).__name__
            raise ValueError(f"{name} searches, and has no tools" if searches else f"{name} calls no tools")
        return None


@dataclass(frozen=True, slots=True)
class _Rollout:
    """One trajectory on its way, and what moves it."""

    engine: Engine
    protocol: TurnProtocol
    searching: Searching | None
    limits: Limits
    sampling: SamplingParams
    trajectory: Trajectory

    @property
    def final(self) -> bool:
        """Whether the next turn was asked for as the final answer: a call was refused, and its turn has no outcome."""
        turns = self.trajectory.turns
        return bool(turns) and turns[-1].action.calls_tool and turns[-1].observation is None

    async def sample(self) -> Turn | None:
        """The next turn, without a reply; None when the trajectory ends without one."""
        trajectory = self.trajectory
        budget = self.limits.turn_tokens(trajectory, final=self.final)
        if budget < 1:
            trajectory.stop = StopReason.TOKEN_LIMIT
            return None
        seed = random.Random(f"{self.sampling.seed}/{len(trajectory.turns)}").getrandbits(63)
        sampling = replace(
            self.sampling, max_tokens=budget, seed=seed, stops=self.protocol.stops, affinity=trajectory.task.id
        )
        started = time.perf_counter()
        try:
            completion = await self.engine.generate(trajectory.token_ids, trajectory.images, sampling)
        except ContextOverflow:
            trajectory.stop = StopReason.TOKEN_LIMIT
            return None
        except EngineError as error:
            trajectory.stop, trajectory.failure = StopReason.FAILED, Failure(FailureKind.UNAVAILABLE, str(error))
            return None
        return self._turn(self.protocol.sampled(completion), time.perf_counter() - started)

    async def react(self, turn: Turn) -> None:
        """Carry out what a turn asks for, and append it with the reply; sets `stop` where the trajectory ends."""
        try:
            turn, self.trajectory.stop = await self._reaction(turn)
        finally:  # a turn whose call is interrupted is kept: it was sampled
            self.trajectory.turns.append(turn)

    def _turn(self, completion: Completion, seconds: float) -> Turn:
        text = self.protocol.chat.decode(completion.token_ids)
        return Turn(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            text=text,
            action=self.protocol.read(text),
            generation_seconds=seconds,
        )

    async def _reaction(self, turn: Turn) -> tuple[Turn, StopReason | None]:
        trajectory, limits = self.trajectory, self.limits
        if self.searching is None:  # the turn is all that there will be
            return turn, StopReason.TOKEN_LIMIT if turn.finish_reason is FinishReason.LENGTH else StopReason.ANSWERED
        protocol, tools = self.searching
        if turn.action.kind is ActionKind.ANSWER:
            return turn, StopReason.ANSWERED
        if not turn.action.calls_tool:
            return self._without_action(turn, protocol)
        if self.final:
            return turn, StopReason.TURN_LIMIT
        if (refusal := limits.check_search(trajectory, turn.action)) is not None:
            return self._refused(turn, refusal, protocol)
        observation = await tools.answer(turn.action, trajectory)
        turn = replace(turn, observation=observation)
        if limits.should_abort(trajectory, observation):
            trajectory.failure = observation.failure
            return turn, StopReason.FAILED
        reply = protocol.reply(observation, trajectory.task, turn.token_ids)
        if not self._fits(turn, reply):
            reply = protocol.overflow(observation.tool, turn.token_ids)
            if limits.on_overflow == "end" or not self._fits(turn, reply):
                return turn, StopReason.TOKEN_LIMIT
        return _with_reply(turn, reply), None

    def _refused(self, turn: Turn, reason: StopReason, protocol: SearchProtocol) -> tuple[Turn, StopReason | None]:
        """Ask for the final answer where the limits grant one more turn for it; otherwise the trajectory ends."""
        if not self.limits.forced_answer:
            return turn, reason
        request = protocol.ask_for_answer(self.trajectory.task, turn.token_ids)
        if not self._fits(turn, request, final=True):
            return turn, StopReason.TOKEN_LIMIT
        return _with_reply(turn, request), None

    def _without_action(self, turn: Turn, protocol: SearchProtocol) -> tuple[Turn, StopReason | None]:
        """Ask again where the protocol does and a turn is left; otherwise the trajectory ends."""
        notice = protocol.ask_again(turn.token_ids)
        if notice is None or len(self.trajectory.turns) + 1 >= self.limits.max_turns:
            cut_short = turn.finish_reason is FinishReason.LENGTH
            return turn, StopReason.TOKEN_LIMIT if cut_short else StopReason.NO_ACTION
        return (_with_reply(turn, notice), None) if self._fits(turn, notice) else (turn, StopReason.TOKEN_LIMIT)

    def _fits(self, turn: Turn, reply: Encoded, *, final: bool = False) -> bool:
        return self.limits.fits(self.trajectory, len(turn.token_ids), len(reply.token_ids), final=final)


def _with_reply(turn: Turn, reply: Encoded) -> Turn:
    return replace(turn, reply=reply.parts, reply_ids=reply.token_ids)


async def run_batch(
    tasks: Sequence[Task],
    engine: Engine,
    protocol: TurnProtocol,
    tools: Tools | None,
    limits: Limits,
    samplings: Sequence[SamplingParams],
    *,
    max_in_flight: int | None = None,
    close_share: float = 1.0,
) -> list[Trajectory]:
    """Roll out all tasks at once; every task comes back exactly once, in order.

    An unforeseen error ends its own trajectory only. When every trajectory fails, the first error is raised: that is a
    defect and not bad luck.

    Args:
        max_in_flight: Trajectories that run at a time, in the order of their tasks; None for all. One that has begun
            keeps its place to its end, since its prefix lies in the engine's cache.
        close_share: When this share of the tasks has ended, failures not counted, the batch closes: the others are
            cancelled and come back with the turns that they have, as `STRAGGLER`.
    """
    places = asyncio.Semaphore(max_in_flight or max(len(tasks), 1))
    searches = isinstance(protocol, SearchProtocol)
    trajectories = [Trajectory(task=task, prompt=(), prompt_ids=(), has_tools=searches) for task in tasks]
    begun: dict[int, Trajectory] = {}

    async def run(trajectory: Trajectory, sampling: SamplingParams) -> Trajectory:
        async with places:
            first = begun.setdefault(id(trajectory.task), trajectory)  # rollouts of one task have one prompt
            trajectory.prompt, trajectory.prompt_ids = first.prompt, first.prompt_ids
            return await run_trajectory(trajectory.task, engine, protocol, tools, limits, sampling, trajectory)

    pairs = zip(trajectories, samplings, strict=True)
    running = [asyncio.create_task(run(trajectory, sampling)) for trajectory, sampling in pairs]
    cut = await _finish_share(running, close_share)
    outcomes = [
        _outcome(trajectory, task, task in cut) for trajectory, task in zip(trajectories, running, strict=True)
    ]
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if errors and len(errors) == len(outcomes):
        raise errors[0]
    return [settled(trajectory, outcome) for trajectory, outcome in zip(trajectories, outcomes, strict=True)]


async def _finish_share(running: Sequence[asyncio.Task[Trajectory]], share: float) -> set[asyncio.Task[Trajectory]]:
    """Wait until `share` of the tasks has finished, or all have ended; cancel what is left, await it and return it.

    A rollout that failed does not count, so an engine that fails fast never closes a batch over those still at work.
    """
    wanted = math.ceil(share * len(running) - 1e-9)  # 0.07 x 100 is a little more than 7
    pending = set(running)
    try:
        while pending and sum(_finished(task) for task in running) < wanted:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        cut = {task for task in running if not task.done()}
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
    return cut


def _finished(task: asyncio.Task[Trajectory]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and not task.result().aborted


def _outcome(trajectory: Trajectory, task: asyncio.Task[Trajectory], cut: bool) -> Trajectory | BaseException:
    """A trajectory that came to its end or was cut off, or what its rollout raised."""
    if not task.cancelled():
        return task.exception() or task.result()
    if not cut:
        return asyncio.CancelledError()  # a tool's own
    trajectory.stop = trajectory.stop or StopReason.STRAGGLER
    return trajectory


def settled(trajectory: Trajectory, outcome: Trajectory | BaseException) -> Trajectory:
    """The trajectory of an outcome: one whose rollout raised is a typed failure."""
    if isinstance(outcome, Trajectory):
        return outcome
    if not isinstance(outcome, Exception | asyncio.CancelledError):
        raise outcome
    logger.error("The rollout of task %s failed.", trajectory.task.id, exc_info=outcome)
    trajectory.stop = StopReason.FAILED
    trajectory.failure = Failure(FailureKind.UNAVAILABLE, f"{type(outcome).__name__}: {outcome}")
    return trajectory
