"""The gate before a rollout: order, bounds, cancellation, and independence of the tools' own slots."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import FailureKind, Hit, TextHit
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.pressure import Pressure, PressureSource
from mmsearch_trl.rollout.admission import Admission
from mmsearch_trl.rollout.backpressure import Backpressure
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.runtime import SearchRuntime


PROTOCOL = tiny.qwen25().protocol()
CHAT = PROTOCOL.chat
LIMITS = Limits(max_turn_tokens=50, max_response_tokens=900)
ANSWER = "<answer>new</answer>"


class Gauge:
    """An engine of `seconds` per turn, and of at least `readings_per_turn` readings, so that what a test says of the
    cap holds on a busy machine; it tells how full it is by `fill(trajectories generating)`, searches by text, each by
    another, in the first turn of the tasks that `searches` names, and answers in all other turns."""

    def __init__(
        self,
        fill: Callable[[int], Pressure | None] | None = None,
        searches: Sequence[str] = (),
        seconds: float = 0.002,
        readings_per_turn: int = 0,
    ) -> None:
        self._fill = fill
        self._searches = searches
        self._seconds = seconds
        self._readings_per_turn = readings_per_turn
        self.running = self.most = self.readings = 0
        self.order: list[str] = []

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(sampling.affinity)
        enough = self.readings + self._readings_per_turn
        try:
            await asyncio.sleep(self._seconds)
            while self.readings < enough:
                await asyncio.sleep(0.001)
        finally:
            self.running -= 1
        text = ANSWER
        if sampling.affinity in self._searches and self.order.count(sampling.affinity) == 1:
            query = " ".join(["who"] * (1 + self._searches.index(sampling.affinity)))
            text = f"<text_search>{query}</text_search>"
        ids = (*CHAT.tokenizer(text).input_ids, CHAT.turn_end_id)
        return Completion(ids, (-1.0,) * len(ids), FinishReason.STOP)

    async def pressure(self) -> Pressure | None:
        self.readings += 1
        return self._fill(self.running) if self._fill else None


def reading(usage: float) -> Pressure:
    return Pressure(kv_usage=usage, preemptions=0, running=1, waiting=0, read_at=time.monotonic())


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end and find no task left over."""

    async def clean() -> Any:
        async with asyncio.timeout(20):
            result = await scenario
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(clean())


def batch(engine: Any, count: int, admission: Admission | None, tools: Any = None) -> list[Trajectory]:
    samplings = [SamplingParams(max_tokens=1, seed=i) for i in range(count)]
    tools = tools or tiny.CannedTools()
    return run(run_batch(tiny.tasks(count), engine, PROTOCOL, tools, LIMITS, samplings, admission=admission))


@pytest.mark.parametrize("cap", [1, 3, 50])
def test_trajectories_begin_in_order_and_never_more_than_the_cap_at_a_time(cap: int) -> None:
    engine = Gauge()
    trajectories = batch(engine, 12, Admission(Backpressure(cap)))
    assert engine.most == min(cap, 12)
    assert engine.order == [trajectory.task.id for trajectory in trajectories] == [f"task{i}" for i in range(12)]
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ANSWERED}


def test_the_gate_changes_when_a_trajectory_runs_and_nothing_else() -> None:
    names = ["task0", "task3", "task4"]
    free, held = (batch(Gauge(searches=names), 6, gate) for gate in (None, Admission(Backpressure(2))))
    assert [t.token_ids for t in free] == [t.token_ids for t in held]
    assert [t.stop for t in free] == [t.stop for t in held]


def test_a_full_engine_holds_back_new_trajectories_and_stops_none() -> None:
    engine = Gauge(lambda running: reading(1.0), readings_per_turn=3)
    rule = Backpressure(8)
    admission = Admission(rule, engine, interval_s=0.01)
    trajectories = batch(engine, 16, admission)
    assert engine.most == 8 and rule.cap == admission.lowest_cap == 1
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ANSWERED}


def test_an_engine_that_empties_lets_more_begin() -> None:
    engine = Gauge(lambda running: reading(0.0), readings_per_turn=3)
    rule = Backpressure(16)
    rule.cap = 2
    batch(engine, 24, Admission(rule, engine, interval_s=0.005))
    assert engine.most > 4 and rule.cap > 4


def test_a_cache_that_fills_with_trajectories_is_kept_below_its_mark() -> None:
    engine = Gauge(lambda running: reading(min(running / 20, 1.0)), seconds=0.03)
    rule = Backpressure(64)
    for _ in range(50):  # on a busy machine a batch may end before it was read
        if rule.cap > 20:
            batch(engine, 64, Admission(rule, engine, interval_s=0.004))
    assert rule.cap <= 20  # kept from batch to batch
    engine.most = 0
    batch(engine, 64, Admission(rule, engine, interval_s=0.004))
    assert engine.most <= 24


@pytest.mark.parametrize("fault", ["none", "raises", "hangs"])
def test_an_engine_that_cannot_be_read_holds_nobody_up(fault: str) -> None:
    class Mute(Gauge):
        async def pressure(self) -> Pressure | None:
            self.readings += 1
            if fault == "raises":
                raise ConnectionError("no metrics")
            if fault == "hangs":
                await asyncio.sleep(60)
            return None

    engine = Mute(readings_per_turn=1)
    rule = Backpressure(4)
    batch(engine, 8, Admission(rule, engine, interval_s=0.002))
    assert engine.readings and rule.cap == engine.most == 4


def test_an_engine_without_readings_is_told_from_one_with() -> None:
    model: Any = tiny.qwen25()
    assert isinstance(Gauge(), PressureSource)
    assert not isinstance(model.engine(model.model(), CHAT), PressureSource)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=25), st.integers(1, 4))
def test_cancelled_waiters_and_holders_lose_no_place(plan: list[tuple[int, int]], cap: int) -> None:
    """Each entry: how long one holds its place, and when it is cancelled (0: never), in turns of the loop."""

    async def scenario() -> None:
        admission = Admission(Backpressure(cap))
        began: list[int] = []

        async def visit(number: int, stay: int) -> None:
            async with admission.place():
                began.append(number)
                assert admission.in_flight <= cap
                for _ in range(stay):
                    await asyncio.sleep(0)

        visits = [asyncio.create_task(visit(number, stay)) for number, (stay, _) in enumerate(plan)]
        for now in range(1, 7):
            await asyncio.sleep(0)
            for task, (_, when) in zip(visits, plan, strict=True):
                if when == now:
                    task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        assert began == sorted(began)
        assert {number for number, (_, when) in enumerate(plan) if not when} <= set(began)
        assert admission.in_flight == 0
        async with admission.place():
            assert admission.in_flight == 1

    run(scenario())


def test_cancelling_a_batch_at_the_gate_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        engine = Gauge(lambda running: reading(0.5), seconds=60)
        admission = Admission(Backpressure(2), engine, interval_s=0.001)
        samplings = [SamplingParams(max_tokens=1)] * 6
        rollout = run_batch(
            tiny.tasks(6), engine, PROTOCOL, tiny.CannedTools(), LIMITS, samplings, admission=admission
        )
        task = asyncio.create_task(rollout)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert admission.in_flight == 0 and engine.running == 0

    run(scenario())


class SlowBackend:
    """Counts its calls; each lasts `seconds`."""

    name, fingerprint = "slow", "1"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.running = self.most = 0

    async def search(self, query: str, k: int) -> Sequence[Hit]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.running -= 1
        return [TextHit("title", query)]


def test_full_tool_slots_hold_no_trajectory_out_of_the_engine() -> None:
    """Six of twelve search through one slot; the six others finish while the first search still runs."""
    searching = [f"task{i}" for i in range(6)]
    engine = Gauge(lambda running: reading(0.0), searches=searching)
    backend = SlowBackend(0.1)
    tools = SearchRuntime(None, backend, text_policy=CallPolicy(max_concurrency=1, timeout_s=9))
    trajectories = batch(engine, 12, Admission(Backpressure(12), engine), tools)
    assert max(t.seconds for t in trajectories[6:]) < min(t.seconds for t in trajectories[:6]) and backend.most == 1
    assert all(observation.hits for trajectory in trajectories[:6] for observation in trajectory.observations)


def test_a_calm_engine_lets_new_trajectories_pass_those_that_wait_for_tools() -> None:
    """All of the cap sits in a slow tool; the engine, then idle, lets others begin."""
    searching = [f"task{i}" for i in range(4)]
    engine = Gauge(lambda running: reading(0.0), searches=searching)
    tools = SearchRuntime(None, SlowBackend(0.1), text_policy=CallPolicy(max_concurrency=1, timeout_s=9))
    rule = Backpressure(16)
    rule.cap = 4
    trajectories = batch(engine, 10, Admission(rule, engine, interval_s=0.005), tools)
    last_searcher = max(range(len(engine.order)), key=lambda i: engine.order[i] in searching and i)
    assert engine.order.index("task9") < last_searcher
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ANSWERED}


def test_a_full_engine_cap_holds_no_search_up() -> None:
    """The cap is taken by trajectories that search: their searches all run at once, on slots of their own."""
    names = [f"task{i}" for i in range(8)]
    backend = SlowBackend(0.1)
    engine = Gauge(lambda running: reading(1.0), searches=names, readings_per_turn=3)
    tools = SearchRuntime(None, backend, text_policy=CallPolicy(max_concurrency=4, timeout_s=5))
    rule = Backpressure(4)
    trajectories = batch(engine, 8, Admission(rule, engine, interval_s=0.005), tools)
    assert backend.most == 4 and engine.most <= 4 and rule.cap == 1
    failures = [o.failure for t in trajectories for o in t.observations if o.failure]
    assert not failures and {t.stop for t in trajectories} == {StopReason.ANSWERED}


def test_a_search_that_times_out_gives_its_slot_and_no_place_back_early() -> None:
    names = [f"task{i}" for i in range(3)]
    engine = Gauge(lambda running: reading(0.0), searches=names)
    tools = SearchRuntime(None, SlowBackend(60), text_policy=CallPolicy(max_concurrency=1, timeout_s=0.05))
    admission = Admission(Backpressure(1), engine, interval_s=0.005)
    trajectories = batch(engine, 3, admission, tools)
    kinds = [o.failure and o.failure.kind for t in trajectories for o in t.observations]
    assert kinds == [FailureKind.TIMEOUT] * 3 and engine.most == 1 and admission.in_flight == 0
