"""The rollout: one readable coroutine per trajectory, on which the whole system hangs.

Every trajectory runs on its own and nothing waits for the slowest. A tool that fails is a value in the trajectory; an
engine that fails ends that trajectory alone, as a typed failure.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.core.observation import Failure, FailureKind, ImageQuery, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.protocol.chat import Encoded
from mmsearch_trl.rollout.admission import Admission
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.stragglers import Outcome, Unfinished, finish_share
from mmsearch_trl.search.calls.record import CallRecord


logger = logging.getLogger(__name__)


class Tools(Protocol):
    """What answers a search; `search.runtime.SearchRuntime` is one. Failures are values in the observation."""

    async def image_search(self, query: ImageQuery) -> Observation: ...

    async def text_search(self, query: str) -> Observation: ...

    def drain_records(self) -> list[CallRecord]:
        """Calls since the last drain, for metrics."""
        ...


def named_sampling(limits: Limits, name: str, temperature: float) -> SamplingParams:
    """How a trajectory is sampled whose seed follows from a name alone, such as run seed, step and row number."""
    seed = random.Random(name).getrandbits(63)
    return SamplingParams(max_tokens=limits.max_turn_tokens, temperature=temperature, seed=seed)


async def run_trajectory(
    task: Task,
    engine: Engine,
    protocol: TurnProtocol,
    tools: Tools,
    limits: Limits,
    sampling: SamplingParams,
    trajectory: Trajectory | None = None,
) -> Trajectory:
    """Roll out one task.

    Args:
        sampling: Of every turn; `max_tokens` is set per turn by `limits`, and each turn has a seed of its own that
            depends on `sampling.seed` and the turn's number alone.
        trajectory: One of this task to go on with, in place. Whoever cancels this coroutine finds in it every turn
            that was sampled.
    """
    started = time.perf_counter()
    trajectory = trajectory or _unbegun(task)
    try:
        if not trajectory.prompt_ids:
            prompt = protocol.prompt(task)
            trajectory.prompt, trajectory.prompt_ids = prompt.parts, prompt.token_ids
        while trajectory.stop is None:
            await _take_turn(trajectory, engine, protocol, tools, limits, sampling)
    finally:
        trajectory.seconds += time.perf_counter() - started
    return trajectory


async def run_batch(
    tasks: Sequence[Task],
    engine: Engine,
    protocol: TurnProtocol,
    tools: Tools,
    limits: Limits,
    samplings: Sequence[SamplingParams],
    *,
    admission: Admission | None = None,
    close_share: float = 1.0,
    carried: Sequence[Unfinished] = (),
) -> list[Trajectory]:
    """Roll out all tasks at once; every task comes back exactly once, in order.

    An unforeseen error ends its own trajectory only. When every trajectory fails, the first error is raised: that is a
    defect and not bad luck.

    Args:
        admission: Holds trajectories back while too many are in flight.
        close_share: When this share of the tasks has ended, failures not counted, the batch closes: the others come
            back with the turns that they have, as `STRAGGLER`.
        carried: Trajectories of earlier batches that go on beside, in place; no batch waits for them, and one that
            does not end in this batch keeps `stop` None.
    """

    async def run(trajectory: Trajectory, sampling: SamplingParams) -> Trajectory:
        async with admission.place() if admission else nullcontext():
            return await run_trajectory(trajectory.task, engine, protocol, tools, limits, sampling, trajectory)

    trajectories = [_unbegun(task) for task in tasks]
    async with admission or nullcontext():
        outcomes, earlier = await finish_share(
            [run(trajectory, sampling) for trajectory, sampling in zip(trajectories, samplings, strict=True)],
            close_share,
            beside=[run(late.trajectory, late.sampling) for late in carried],
        )
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if errors and len(errors) == len(outcomes):
        raise errors[0]
    for trajectory, outcome in zip([late.trajectory for late in carried], earlier, strict=True):
        _mark_failure(trajectory, outcome)
    for trajectory, outcome in zip(trajectories, outcomes, strict=True):
        _mark_failure(trajectory, outcome)
        trajectory.stop = trajectory.stop or StopReason.STRAGGLER
    return trajectories


def _unbegun(task: Task) -> Trajectory:
    return Trajectory(task=task, prompt=(), prompt_ids=())


def _mark_failure(trajectory: Trajectory, outcome: Outcome) -> None:
    if isinstance(outcome, Exception | asyncio.CancelledError):  # a tool's own: ours would have ended the batch
        logger.error("The rollout of task %s failed.", trajectory.task.id, exc_info=outcome)
        trajectory.stop = StopReason.FAILED
        trajectory.failure = Failure(FailureKind.UNAVAILABLE, f"{type(outcome).__name__}: {outcome}")
    elif isinstance(outcome, BaseException):
        raise outcome


async def _take_turn(
    trajectory: Trajectory,
    engine: Engine,
    protocol: TurnProtocol,
    tools: Tools,
    limits: Limits,
    sampling: SamplingParams,
) -> None:
    """Append one turn with the reply to it, or set why there is none."""
    turn = trajectory.turns.pop() if trajectory.turns and not trajectory.turns[-1].reply_ids else None
    before = trajectory.turns[-1] if trajectory.turns else None
    final = before is not None and before.action.calls_tool and before.observation is None  # asked for the answer
    if turn is None:
        turn = await _sample(trajectory, engine, protocol, limits, sampling, final)
    if turn is None:
        return
    try:
        turn, trajectory.stop = await _react(turn, trajectory, protocol, tools, limits, final)
    finally:  # a turn whose reply is interrupted is kept: it was sampled, and is not sampled again
        trajectory.turns.append(turn)


async def _sample(
    trajectory: Trajectory,
    engine: Engine,
    protocol: TurnProtocol,
    limits: Limits,
    sampling: SamplingParams,
    final: bool,
) -> Turn | None:
    """The next turn, without a reply; None when the trajectory ends without one."""
    budget = limits.turn_tokens(trajectory, final=final)
    if budget < 1:
        trajectory.stop = StopReason.TOKEN_LIMIT
        return None
    seed = random.Random(f"{sampling.seed}/{len(trajectory.turns)}").getrandbits(63)
    sampling = replace(sampling, max_tokens=budget, seed=seed, stops=protocol.stops, affinity=trajectory.task.id)
    started = time.perf_counter()
    try:
        completion = await engine.generate(trajectory.token_ids, trajectory.images, sampling)
    except ContextOverflow:
        trajectory.stop = StopReason.TOKEN_LIMIT
        return None
    except EngineError as error:
        trajectory.stop, trajectory.failure = StopReason.FAILED, Failure(FailureKind.UNAVAILABLE, str(error))
        return None
    return _turn(protocol, protocol.sampled(completion), time.perf_counter() - started)


def _turn(protocol: TurnProtocol, completion: Completion, seconds: float) -> Turn:
    text = protocol.chat.decode(completion.token_ids)
    return Turn(
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish_reason=completion.finish_reason,
        text=text,
        action=protocol.read(text),
        generation_seconds=seconds,
    )


async def _react(
    turn: Turn, trajectory: Trajectory, protocol: TurnProtocol, tools: Tools, limits: Limits, final: bool
) -> tuple[Turn, StopReason | None]:
    """Carry out what a turn asks for. Returns the turn with its reply, and why the trajectory ends, if it does."""
    if not turn.action.calls_tool:
        if turn.action.kind is ActionKind.ANSWER:
            return turn, StopReason.ANSWERED
        return _without_action(turn, trajectory, protocol, limits)
    refusal = StopReason.TURN_LIMIT if final else limits.check_search(trajectory, turn.action)
    if refusal is not None:
        if final or not limits.forced_answer:
            return turn, refusal
        request = protocol.ask_for_answer(trajectory.task, turn.token_ids)
        if not limits.fits(trajectory, len(turn.token_ids), len(request.token_ids), final=True):
            return turn, StopReason.TOKEN_LIMIT
        return _with_reply(turn, request), None
    observation = await _search(turn.action, trajectory.task, tools)
    if limits.should_abort(trajectory, observation):
        trajectory.failure = observation.failure
        return replace(turn, observation=observation), StopReason.FAILED
    reply = protocol.reply(observation, trajectory.task, turn.token_ids)
    if not limits.fits(trajectory, len(turn.token_ids), len(reply.token_ids)):
        reply = protocol.overflow(observation.tool, turn.token_ids)
        if limits.on_overflow == "end" or not limits.fits(trajectory, len(turn.token_ids), len(reply.token_ids)):
            return replace(turn, observation=observation), StopReason.TOKEN_LIMIT
    return _with_reply(replace(turn, observation=observation), reply), None


def _without_action(
    turn: Turn, trajectory: Trajectory, protocol: TurnProtocol, limits: Limits
) -> tuple[Turn, StopReason | None]:
    """Ask again where the protocol does and a turn is left; otherwise the trajectory ends."""
    cut_short = turn.finish_reason is FinishReason.LENGTH
    notice = protocol.ask_again(turn.token_ids)
    if notice is None or len(trajectory.turns) + 1 >= limits.max_turns:
        return turn, StopReason.TOKEN_LIMIT if cut_short else StopReason.NO_ACTION
    if not limits.fits(trajectory, len(turn.token_ids), len(notice.token_ids)):
        return turn, StopReason.TOKEN_LIMIT
    return _with_reply(turn, notice), None


def _with_reply(turn: Turn, reply: Encoded) -> Turn:
    return replace(turn, reply=reply.parts, reply_ids=reply.token_ids)


async def _search(action: Action, task: Task, tools: Tools) -> Observation:
    if action.kind is ActionKind.TEXT_SEARCH:
        return await tools.text_search(action.text or "")
    query = image_query(task)
    if query is None:
        failure = Failure(FailureKind.INVALID_QUERY, f"Task {task.id} has no image to search by.")
        return Observation(tool=ActionKind.IMAGE_SEARCH, failure=failure)
    return await tools.image_search(query)


def image_query(task: Task) -> ImageQuery | None:
    """What an image search of a task looks up; None where there is no image."""
    return ImageQuery(task.images[0], data_id=task.id, url=task.image_url) if task.images else None
