"""A batch of rollouts: as many at a time as the cap allows, closed before its slowest where that is asked for."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Hit, ImageQuery, Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch, run_trajectory
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.runtime import SearchRuntime


FAMILY = tiny.qwen25()
PROTOCOL = FAMILY.protocol()
CHAT = PROTOCOL.chat
LIMITS = Limits(max_turn_tokens=50, max_response_tokens=900)
TEXT, IMAGE, ANSWER = "<text_search>who</text_search>", "<search><img></search>", "<answer>new</answer>"


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end and find no task left over."""

    async def clean() -> Any:
        async with asyncio.timeout(60):
            result = await scenario
        for _ in range(5):  # a cancelled search needs a moment to end
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(clean())


class Scripted:
    """Writes the turns of `scripts[task]`, each in no time or, for a number in its place, after so many seconds."""

    def __init__(self, scripts: dict[str, Sequence[str | float]]) -> None:
        self._scripts = {name: list(script) for name, script in scripts.items()}
        self.cancelled: list[str] = []
        self.running = self.most = 0
        self.asked: list[tuple[str, SamplingParams]] = []

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        self.asked.append((sampling.affinity, sampling))
        script = self._scripts[sampling.affinity]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while isinstance(script[0], float):
                await asyncio.sleep(script.pop(0))  # pyright: ignore[reportArgumentType]
        except asyncio.CancelledError:
            self.cancelled.append(sampling.affinity)
            raise
        finally:
            self.running -= 1
        text = script.pop(0)
        if text == "cancelled":
            raise asyncio.CancelledError
        if text == "fail":
            raise EngineError("out of memory")
        if text == "defect":
            raise ZeroDivisionError("a defect")
        ids = (*CHAT.tokenizer(text).input_ids, CHAT.turn_end_id)
        return Completion(ids, tuple(-1.0 - i for i in range(len(ids))), FinishReason.STOP)


def close(engine: Any, count: int, share: float, tools: Any = None, **options: Any) -> list[Trajectory]:
    samplings = [SamplingParams(max_tokens=1, seed=i) for i in range(count)]
    tools = tools or tiny.CannedTools()
    return run(run_batch(tiny.tasks(count), engine, PROTOCOL, tools, LIMITS, samplings, close_share=share, **options))


def answering(count: int, **others: Sequence[str | float]) -> Scripted:
    return Scripted({f"task{i}": (ANSWER,) for i in range(count)} | others)


def stops(trajectories: Sequence[Trajectory]) -> list[str]:
    return [str(trajectory.stop) for trajectory in trajectories]


def test_a_whole_share_is_every_trajectory_run_alone() -> None:
    """Real sampling: a batch with the default share against one trajectory after another."""
    protocol, model = FAMILY.restless(), FAMILY.model()
    given_tasks = tiny.tasks(6, images=(1, 0, 2))
    samplings = [SamplingParams(max_tokens=1, seed=i) for i in range(6)]

    async def both() -> None:
        engine = FAMILY.engine(model, protocol.chat)
        alone = [
            await run_trajectory(task, engine, protocol, tiny.CannedTools(), tiny.LIMITS, sampling)
            for task, sampling in zip(given_tasks, samplings, strict=True)
        ]
        share: Any
        for share in ({}, {"close_share": 1.0}):
            tools = tiny.CannedTools()
            batch = await run_batch(given_tasks, engine, protocol, tools, tiny.LIMITS, samplings, **share)
            for one, other in zip(alone, batch, strict=True):
                assert (one.token_ids, one.loss_mask, one.stop) == (other.token_ids, other.loss_mask, other.stop)
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        engine.close()

    run(both())


class OneSlowBackend:
    """Answers `who` never, everything else at once."""

    name, fingerprint = "slow", "1"

    def __init__(self) -> None:
        self.cancelled = 0

    async def search(self, query: str, k: int) -> Sequence[Hit]:
        try:
            await asyncio.sleep(60 if query == "who" else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [TextHit("title", "text")]


def test_a_batch_closes_without_the_trajectory_whose_search_hangs() -> None:
    backend = OneSlowBackend()
    tools = SearchRuntime(None, backend, text_policy=CallPolicy(timeout_s=50, try_timeout_s=50))
    engine = answering(4, task2=(TEXT, ANSWER), task3=("<text_search>where</text_search>", ANSWER))
    trajectories = close(engine, 4, 0.75, tools)
    assert stops(trajectories) == ["answered", "answered", "straggler", "answered"]
    assert backend.cancelled == 1, "the search itself is given up, too"
    [turn] = trajectories[2].turns
    assert turn.text == TEXT and turn.observation is None and not turn.reply_ids
    assert sum(trajectories[2].loss_mask) == len(trajectories[2].completion_ids) == len(turn.logprobs)


def test_a_turn_in_the_engine_is_cancelled_and_the_turns_before_it_are_kept() -> None:
    engine = answering(4, task1=(TEXT, 60.0, ANSWER))
    trajectories = close(engine, 4, 0.75)
    assert engine.cancelled == ["task1"] and trajectories[1].stop is StopReason.STRAGGLER
    [turn] = trajectories[1].turns
    assert turn.observation is not None and turn.reply_ids


def test_a_share_is_rounded_up_and_the_order_is_kept() -> None:
    engine = Scripted({f"task{i}": (0.03 * (5 - i), ANSWER) for i in range(5)})
    trajectories = close(engine, 5, 0.5)
    assert [t.task.id for t in trajectories] == [f"task{i}" for i in range(5)]
    assert stops(trajectories) == ["straggler"] * 2 + ["answered"] * 3


@pytest.mark.parametrize("fault", ["fail", "defect"])
def test_a_failure_closes_no_batch_over_those_at_work(fault: str) -> None:
    others = {f"task{i}": (fault,) for i in range(3)}
    engine = Scripted({**others, "task3": (0.02, ANSWER), "task4": (60.0, ANSWER)})
    with_one = close(engine, 5, 0.2)
    assert stops(with_one) == ["failed"] * 3 + ["answered", "straggler"]
    engine = Scripted({**others, "task3": (0.02, ANSWER), "task4": (0.05, ANSWER)})
    assert stops(close(engine, 5, 0.8)) == ["failed"] * 3 + ["answered"] * 2, "fewer than the share can finish"


def test_a_failed_trajectory_keeps_what_it_had() -> None:
    [trajectory, _] = close(Scripted({"task0": (TEXT, "defect"), "task1": (ANSWER,)}), 2, 1.0)
    assert trajectory.stop is StopReason.FAILED and trajectory.failure is not None
    assert len(trajectory.turns) == 1 and "a defect" in trajectory.failure.message


@pytest.mark.parametrize("cap", [1, 3, 50])
def test_trajectories_begin_in_order_and_never_more_than_the_cap_at_a_time(cap: int) -> None:
    engine = Scripted({f"task{i}": (0.002, ANSWER) for i in range(12)})
    trajectories = close(engine, 12, 1.0, max_in_flight=cap)
    assert engine.most == min(cap, 12)
    assert [name for name, _ in engine.asked] == [t.task.id for t in trajectories] == [f"task{i}" for i in range(12)]
    assert stops(trajectories) == ["answered"] * 12


def test_the_cap_changes_when_a_trajectory_runs_and_nothing_else() -> None:
    def batch(**options: int) -> list[Trajectory]:
        return close(answering(6, task0=(TEXT, ANSWER), task3=(0.01, IMAGE, ANSWER)), 6, 1.0, **options)

    free, held = batch(), batch(max_in_flight=2)
    assert [(t.token_ids, t.stop) for t in free] == [(t.token_ids, t.stop) for t in held]


def test_one_that_waits_for_a_place_comes_back_unbegun() -> None:
    engine = Scripted({"task0": (ANSWER,), "task1": (60.0, ANSWER), "task2": (ANSWER,), "task3": (ANSWER,)})
    trajectories = close(engine, 4, 0.25, max_in_flight=1)
    assert stops(trajectories) == ["answered"] + ["straggler"] * 3
    assert not trajectories[2].prompt_ids and not trajectories[2].token_ids


def test_rollouts_of_one_task_encode_its_prompt_once_and_are_as_those_of_copies(monkeypatch: Any) -> None:
    copies = [replace(tiny.tasks(1)[0]) for _ in range(6)]
    encoded, prompt = [], PROTOCOL.prompt
    monkeypatch.setattr(PROTOCOL, "prompt", lambda task: encoded.append(task) or prompt(task))

    def batch(tasks: Sequence[Task]) -> list[Trajectory]:
        engine = Scripted({copies[0].id: [ANSWER] * len(tasks)})
        samplings = [SamplingParams(max_tokens=50, seed=seed) for seed in range(len(tasks))]
        return run(run_batch(tasks, engine, PROTOCOL, tiny.CannedTools(), LIMITS, samplings, max_in_flight=2))

    apart = batch(copies)
    assert len(encoded) == len(copies)
    together = batch([copies[0]] * len(copies))
    assert len(encoded) == len(copies) + 1
    assert [(t.prompt_ids, t.token_ids, t.images) for t in together] == [
        (t.prompt_ids, t.token_ids, t.images) for t in apart
    ]


def test_cancelling_a_batch_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        engine = Scripted({f"task{i}": (60.0, ANSWER) for i in range(4)})
        samplings = [SamplingParams(max_tokens=1)] * 4
        batch = asyncio.create_task(
            run_batch(tiny.tasks(4), engine, PROTOCOL, tiny.CannedTools(), LIMITS, samplings, close_share=0.5)
        )
        await asyncio.sleep(0.02)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert sorted(engine.cancelled) == [f"task{i}" for i in range(4)]

    run(scenario())


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([ANSWER, "fail", "defect", "cancelled"])), max_size=9),
    st.floats(0.01, 1),
)
def test_every_task_has_an_outcome(plan: list[tuple[int, str]], share: float) -> None:
    """Whatever becomes of the others, and nothing is cut off before the share has finished."""
    scripts: dict[str, Sequence[str | float]] = {
        f"task{i}": [*([TEXT] * (turns and 1)), end] for i, (turns, end) in enumerate(plan)
    }
    ends = [end for _, end in plan]
    if plan and set(ends) <= {"defect", "cancelled"}:
        with pytest.raises((ZeroDivisionError, asyncio.CancelledError)):
            close(Scripted(scripts), len(plan), share)
        return
    trajectories = close(Scripted(scripts), len(plan), share)
    assert len(trajectories) == len(plan)
    for trajectory, end in zip(trajectories, ends, strict=True):
        assert trajectory.stop is not None
        assert trajectory.stop is StopReason.STRAGGLER or (trajectory.stop == "answered") == (end == ANSWER)
    if "straggler" in stops(trajectories):
        assert stops(trajectories).count("answered") >= share * len(plan)


def test_an_image_search_in_progress_is_given_up_with_its_trajectory() -> None:
    class Hanging(tiny.CannedTools):
        gave_up = 0

        async def image_search(self, query: ImageQuery) -> Observation:
            try:
                await asyncio.sleep(60)
            finally:
                self.gave_up += 1
            raise AssertionError

    tools = Hanging()
    trajectories = close(answering(3, task0=(IMAGE, ANSWER)), 3, 0.6, tools)
    assert stops(trajectories) == ["straggler", "answered", "answered"] and tools.gave_up == 1
