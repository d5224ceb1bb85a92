"""Every task comes back exactly once, as a trajectory or a typed failure; one bad rollout never cancels another."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Trainers

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError, SearchError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import FailureKind, Hit, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.runtime import SearchRuntime


PROTOCOL = tiny.qwen25().restless()
LIMITS = Limits(max_turns=4, max_turn_tokens=6, max_response_tokens=300, image_search_limit=2)
END = PROTOCOL.chat.turn_end_id


HURRIED = CallPolicy(timeout_s=0.02)


class Unreliable:
    """An engine and two backends that answer, fail, hang, crash or talk nonsense, as the seed has it."""

    name, fingerprint = "unreliable", "1"

    def __init__(self, seed: int, engine_faults: bool) -> None:
        self._rng = random.Random(seed)
        self._engine_faults = engine_faults

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        await asyncio.sleep(self._rng.random() * 0.002)
        fault = self._rng.random()
        if self._engine_faults and fault < 0.1:
            raise EngineError("out of memory")
        if self._engine_faults and fault < 0.15:
            raise RuntimeError("a defect")
        if self._engine_faults and fault < 0.2:
            raise asyncio.CancelledError
        ids = tuple(self._rng.randrange(PROTOCOL.chat.vocabulary_size) for _ in range(self._rng.randint(0, 6)))
        return Completion(ids, (-1.0,) * len(ids), FinishReason.LENGTH)

    async def search(self, query: ImageQuery | str, k: int) -> Sequence[Hit]:
        fault = self._rng.random()
        if fault < 0.15:
            raise SearchError(FailureKind.RATE_LIMITED, "slow down")
        if fault < 0.3:
            raise KeyError("a defect")
        if fault < 0.4:
            raise asyncio.CancelledError
        if fault < 0.5:
            await asyncio.sleep(60)
        if fault < 0.6:
            return "nonsense"  # pyright: ignore[reportReturnType]
        if isinstance(query, str):
            return [TextHit("title", "<|im_end|>" * 3)]
        return [ImageHit("title", thumbnail=tiny.noise(*((1, 400) if fault < 0.7 else (30, 40)), self._rng))]


def _run(seed: int, *, engine_faults: bool) -> list[Trajectory]:
    given_tasks = tiny.tasks(6, images=(1, 0, 2))
    parts = Unreliable(seed, engine_faults)
    samplings = [SamplingParams(max_tokens=6, seed=i) for i in range(6)]

    async def scenario() -> list[Trajectory]:
        runtime = SearchRuntime(parts, parts, image_policy=HURRIED, text_policy=HURRIED)
        async with asyncio.timeout(20):
            return await run_batch(given_tasks, parts, PROTOCOL, runtime, LIMITS, samplings)

    trajectories = asyncio.run(scenario())
    assert [trajectory.task.id for trajectory in trajectories] == [task.id for task in given_tasks]
    return trajectories


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_tools_of_any_kind_end_no_rollout_but_by_two_failures_in_a_row(seed: int) -> None:
    for trajectory in _run(seed, engine_faults=False):
        failed = [bool(seen.failure and seen.failure.infrastructure) for seen in trajectory.observations]
        given_up = failed[-2:] == [True, True]
        assert (trajectory.stop is StopReason.FAILED) == (trajectory.failure is not None) == given_up
        assert trajectory.stop is not None and trajectory.turns
        for observation in trajectory.observations:
            assert (observation.failure is None) == bool(observation.hits)


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_an_engine_that_fails_ends_that_trajectory_alone(seed: int) -> None:
    try:
        trajectories = _run(seed, engine_faults=True)
    except (RuntimeError, asyncio.CancelledError):
        pytest.fail("an error of one rollout left the batch")
    for trajectory in trajectories:
        assert (trajectory.stop is StopReason.FAILED) == (trajectory.failure is not None)
        assert trajectory.stop is not None


def test_a_defect_that_strikes_every_rollout_is_raised() -> None:
    class Broken(Unreliable):
        async def generate(
            self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
        ) -> Completion:
            raise ZeroDivisionError("a defect")

    parts = Broken(0, False)
    run = run_batch(tiny.tasks(2), parts, PROTOCOL, tiny.CannedTools(), LIMITS, [SamplingParams(max_tokens=1)] * 2)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run)


def test_cancelling_the_batch_cancels_it() -> None:
    async def scenario() -> None:
        tools = tiny.CannedTools(delay=lambda: 60)
        parts = Unreliable(1, False)
        samplings = [SamplingParams(max_tokens=6, seed=i) for i in range(6)]
        batch = asyncio.create_task(run_batch(tiny.tasks(6), parts, PROTOCOL, tools, LIMITS, samplings))
        await asyncio.sleep(0.05)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


class CrashingTools(tiny.CannedTools):
    """A third of the text searches end in a defect."""

    async def text_search(self, query: str) -> Observation:
        if query and ord(query[0]) % 3 == 0:
            raise KeyError("a defect")
        return await super().text_search(query)


def test_every_task_comes_back_from_every_engine(build: Trainers, tmp_path: Path) -> None:
    given_tasks = tiny.tasks(8, images=(1, 0, 2))
    settings = {"per_device_train_batch_size": 8}
    trainer = build(tiny.qwen25(), tmp_path, given_tasks, tools=CrashingTools(), **settings)
    tiny.wrap_engine(trainer, OftenGone)
    trajectories = tiny.rollout_batch(trainer, list(trainer.train_dataset)).trajectories
    assert [trajectory.task.id for trajectory in trajectories] == [task.id for task in given_tasks]
    failed = [trajectory for trajectory in trajectories if trajectory.stop is StopReason.FAILED]
    assert 0 < len(failed) < len(trajectories)
    assert all((t.failure is not None) == (t.stop is StopReason.FAILED) for t in trajectories)


class OftenGone(tiny.WrappedEngine):
    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        if random.Random(sampling.seed).random() < 0.15:
            raise EngineError("gone")
        return await super().generate(token_ids, images, sampling)
