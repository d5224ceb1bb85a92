"""Closing a batch before its slowest trajectories, and going on with them."""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Hit, ImageQuery, Observation, TextHit
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.rollout.admission import Admission
from mmsearch_trl.rollout.backpressure import Backpressure
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch, run_trajectory
from mmsearch_trl.rollout.stragglers import Unfinished, finish_share
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
        self.asked: list[tuple[str, SamplingParams]] = []

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        self.asked.append((sampling.affinity, sampling))
        script = self._scripts[sampling.affinity]
        try:
            while isinstance(script[0], float):
                await asyncio.sleep(script.pop(0))  # pyright: ignore[reportArgumentType]
        except asyncio.CancelledError:
            self.cancelled.append(sampling.affinity)
            raise
        text = script.pop(0)
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


def test_one_that_waits_at_the_gate_comes_back_unbegun() -> None:
    engine = Scripted({"task0": (ANSWER,), "task1": (60.0, ANSWER), "task2": (ANSWER,), "task3": (ANSWER,)})
    admission = Admission(Backpressure(1))
    trajectories = close(engine, 4, 0.25, admission=admission)
    assert stops(trajectories) == ["answered"] + ["straggler"] * 3
    assert not trajectories[2].prompt_ids and not trajectories[2].token_ids and admission.in_flight == 0


def test_a_search_that_was_interrupted_is_asked_again_and_nothing_is_sampled_twice() -> None:
    class Hanging(tiny.CannedTools):
        async def text_search(self, query: str) -> Observation:
            await asyncio.sleep(60)
            raise AssertionError

    engine = answering(2, task0=(IMAGE, TEXT, ANSWER))
    cut, _ = close(engine, 2, 0.5, Hanging())
    assert cut.stop is StopReason.STRAGGLER and [bool(turn.reply_ids) for turn in cut.turns] == [True, False]
    recorded = [(turn.token_ids, turn.logprobs) for turn in cut.turns]
    late = Unfinished(replace(cut, turns=list(cut.turns), stop=None), SamplingParams(max_tokens=1, seed=0))
    tools = tiny.CannedTools()
    others = tiny.tasks(2)[1:]
    engine._scripts["task1"] = [0.05, ANSWER]
    run(run_batch(others, engine, PROTOCOL, tools, LIMITS, [SamplingParams(max_tokens=1)], carried=[late]))
    finished = late.trajectory
    assert finished.stop is StopReason.ANSWERED and tools.calls == [(ActionKind.TEXT_SEARCH, "who")]
    assert [(turn.token_ids, turn.logprobs) for turn in finished.turns[:2]] == recorded
    asked = [sampling.seed for name, sampling in engine.asked if name == "task0"]
    assert len(asked) == len(set(asked)) == 3, "one request a turn, each with its own seed"
    assert cut.stop is StopReason.STRAGGLER and len(cut.turns) == 2, "what the first batch returned is left alone"


def test_a_request_for_the_answer_is_remembered() -> None:
    limits = replace(LIMITS, forced_answer=True, text_search_limit=0, max_turns=2)

    async def scenario() -> Trajectory:
        engine = answering(1, task0=(TEXT, 60.0, TEXT))
        [task] = tiny.tasks(1)
        trajectory = Trajectory(task=task, prompt=(), prompt_ids=())
        tools = tiny.CannedTools()
        arguments: tuple[Any, ...] = (task, engine, PROTOCOL, tools, limits, SamplingParams(max_tokens=1), trajectory)
        first = asyncio.create_task(run_trajectory(*arguments))
        await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled() and len(trajectory.turns) == 1 and trajectory.seconds > 0.01
        return await run_trajectory(*arguments)

    trajectory = run(scenario())
    assert trajectory.stop is StopReason.TURN_LIMIT and len(trajectory.turns) == 2, "asked once, not twice"


@settings(max_examples=12)
@given(st.integers(0, 2**32))
def test_interrupted_or_not_it_is_the_same_trajectory(seed: int) -> None:
    """Under the same weights and the same answers, wherever and however often it is cut off."""
    protocol, rng = FAMILY.restless(), random.Random(seed)
    [task] = tiny.tasks(1, seed=seed)
    model = FAMILY.model()
    sampling = SamplingParams(max_tokens=1, seed=seed)

    async def scenario() -> tuple[Trajectory, Trajectory]:
        engine = FAMILY.engine(model, protocol.chat, gather_seconds=0.0)
        tools = tiny.CannedTools(delay=lambda: 0.01)
        whole = await run_trajectory(task, engine, protocol, tools, tiny.LIMITS, sampling)
        pieces = Trajectory(task=task, prompt=(), prompt_ids=())
        patience = 0.0
        while pieces.stop is None:
            patience += 0.03
            piece = asyncio.create_task(
                run_trajectory(task, engine, protocol, tools, tiny.LIMITS, sampling, trajectory=pieces)
            )
            await asyncio.wait({piece}, timeout=rng.uniform(0, patience))
            piece.cancel()
            await asyncio.wait({piece})
        while engine._worker is not None and not engine._worker.done():
            await asyncio.sleep(0.001)
        engine.close()
        return whole, pieces

    whole, pieces = run(scenario())
    assert pieces.token_ids == whole.token_ids and pieces.stop is whole.stop
    assert pieces.loss_mask == whole.loss_mask and pieces.logprobs == pytest.approx(whole.logprobs, abs=1e-5)


def test_carried_trajectories_begin_first_and_nobody_waits_for_them() -> None:
    engine = Scripted({"task0": (0.02, ANSWER), "old0": (60.0, ANSWER), "old1": (ANSWER,), "old2": ("defect",)})
    [task] = tiny.tasks(1)
    old = [
        Unfinished(
            Trajectory(task=replace(task, id=f"old{i}"), prompt=(), prompt_ids=()), SamplingParams(max_tokens=1)
        )
        for i in range(3)
    ]
    trajectories = close(engine, 1, 1.0, carried=old)
    assert stops(trajectories) == ["answered"]
    assert [name for name, _ in engine.asked] == ["old0", "old1", "old2", "task0"]
    assert [late.trajectory.stop for late in old] == [None, StopReason.ANSWERED, StopReason.FAILED]


def test_cancelling_a_batch_that_carries_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        engine = Scripted({f"task{i}": (60.0, ANSWER) for i in range(4)})
        *new, old = tiny.tasks(4)
        late = Unfinished(Trajectory(task=old, prompt=(), prompt_ids=()), SamplingParams(max_tokens=1))
        samplings = [SamplingParams(max_tokens=1)] * 3
        tools = tiny.CannedTools()
        rollout = run_batch(new, engine, PROTOCOL, tools, LIMITS, samplings, close_share=0.5, carried=[late])
        task = asyncio.create_task(rollout)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(engine.cancelled) == [f"task{i}" for i in range(4)]

    run(scenario())


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["answered", "failed", "raises", "cancelled"])), max_size=9),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
def test_every_run_has_an_outcome(plan: list[tuple[int, str]], share: float, beside: int) -> None:
    async def one(number: int, turns: int, end: str) -> Trajectory:
        for _ in range(turns):
            await asyncio.sleep(0)
        if end == "raises":
            raise ZeroDivisionError
        if end == "cancelled":
            raise asyncio.CancelledError
        return Trajectory(task=task(number), prompt=(), prompt_ids=(), stop=StopReason(end))

    async def scenario() -> None:
        runs = [one(number, turns, end) for number, (turns, end) in enumerate(plan)]
        others = [one(100 + number, 10**9, "answered") for number in range(beside)]
        outcomes, older = await finish_share(runs, share, others)
        assert older == [None] * beside and len(outcomes) == len(plan)
        answered = 0
        for number, (outcome, (_, end)) in enumerate(zip(outcomes, plan, strict=True)):
            if isinstance(outcome, Trajectory):
                assert outcome.task.id == str(number) and outcome.stop == end
                answered += end == "answered"
            elif outcome is not None:
                assert type(outcome) is {"raises": ZeroDivisionError, "cancelled": asyncio.CancelledError}[end]
        cut = outcomes.count(None)
        assert not cut or answered >= share * len(plan), "nothing is cut off before the share has finished"

    run(scenario())


def task(number: int) -> Any:
    return replace(tiny.tasks(1)[0], id=str(number))


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
