"""The step loop around a pretended generator: what one rank does, and what two of them agree upon."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.engine import step_loop
from mmsearch_trl.engine.step_loop import Request, StepLoop


class Stepper:
    """Writes one token per step: as many as asked for, all equal to the prompt's first. Records what it is told."""

    def __init__(self, problem: Callable[[Request], bool] = lambda _: False, delay: float = 0.0) -> None:
        self.batch: dict[str, list[Any]] = {}
        self.told: list[tuple[Any, ...]] = []
        self.fail_next = False
        self._problem = problem
        self._delay = delay

    def prepare(self, request: Request, images: Sequence[Image.Image]) -> tuple[bytes, ...]:
        time.sleep(random.random() * self._delay)
        if self._problem(request):
            raise ValueError(f"cannot prepare {request.token_ids}")
        return tuple(image.tobytes() for image in images)

    def add(self, request: Request, prepared: tuple[bytes, ...]) -> None:
        if request.sampling.max_tokens < 1:
            raise ValueError("max_tokens")
        self.told.append(("add", request.name, request.token_ids, prepared))
        self.batch[request.name] = [request, 0]

    def abort(self, name: str) -> None:
        self.told.append(("abort", name))
        del self.batch[name]

    def step(self) -> list[tuple[str, Completion | EngineError]]:
        self.told.append(("step", *self.batch))
        time.sleep(0.001)
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("out of memory")
        finished: list[tuple[str, Completion | EngineError]] = []
        for name, entry in list(self.batch.items()):
            entry[1] += 1
            if entry[1] == entry[0].sampling.max_tokens:
                token = entry[0].token_ids[0]
                finished.append((name, Completion((token,) * entry[1], (0.0,) * entry[1], FinishReason.LENGTH)))
                del self.batch[name]
        return finished

    @property
    def busy(self) -> bool:
        return bool(self.batch)

    def start_over(self) -> None:
        self.told.append(("start over",))
        self.batch.clear()


class Ranks:
    """Two loops in one process, whose exchange is a barrier instead of a process group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steppers: Sequence[Stepper]) -> None:
        numbers = iter(range(len(steppers)))
        monkeypatch.setattr(dist, "get_rank", lambda group: next(numbers))
        self.shares: list[list[Any]] = [[] for _ in steppers]
        barrier, table = threading.Barrier(len(steppers)), {}

        def exchange(loop: StepLoop, share: Any) -> list[Any]:
            rank = self.loops.index(loop)
            table[rank] = share
            self.shares[rank].append(share)
            barrier.wait(10)
            shares = [table[i] for i in range(len(steppers))]
            barrier.wait(10)
            return shares

        monkeypatch.setattr(StepLoop, "_exchange", exchange)
        ready = threading.Event()  # the exchange looks its loop up in the list

        def wait() -> None:
            ready.wait(10)

        group: Any = object()
        self.loops = [StepLoop(stepper, group, wait) for stepper in steppers]
        ready.set()

    def leave(self) -> None:
        leaving = [threading.Thread(target=loop.leave) for loop in self.loops]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join(10)
            assert not thread.is_alive()


def turn(loop: StepLoop, first: int, tokens: int = 3, images: Sequence[ImageInput] = ()) -> Any:
    return loop.generate([first, 1], images, SamplingParams(max_tokens=tokens))


def picture(shade: int) -> ImageInput:
    return ImageInput(Image.new("RGB", (2, 2), (shade, 0, 0)), f"key{shade}", 1, (2, 2))


def together(*calls: Any) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(gather())


def test_a_turn_joins_the_batch_while_it_is_stepped() -> None:
    stepper = Stepper()
    loop = StepLoop(stepper)

    async def scenario() -> list[Completion]:
        first = asyncio.create_task(turn(loop, 1, tokens=60))
        await asyncio.sleep(0.02)
        second = await turn(loop, 2)
        assert not first.done()
        return [await first, second]

    long, short = asyncio.run(scenario())
    loop.leave()
    assert (long.token_ids, short.token_ids) == ((1,) * 60, (2,) * 3)
    assert ("step", "0/0", "0/1") in stepper.told and loop.busy_seconds > 0.05


def test_what_cannot_be_prepared_or_added_fails_alone() -> None:
    loop = StepLoop(Stepper(problem=lambda request: request.token_ids[0] == 2))
    fine, unprepared, unadded = together(turn(loop, 1), turn(loop, 2), turn(loop, 3, tokens=0))
    loop.leave()
    assert fine.token_ids == (1, 1, 1)
    assert isinstance(unprepared, EngineError) and str(unprepared) == "ValueError: cannot prepare (2, 1)"
    assert isinstance(unadded, EngineError) and "max_tokens" in str(unadded)


def test_a_failed_step_fails_what_is_under_way_and_nothing_after() -> None:
    stepper = Stepper()
    loop = StepLoop(stepper)
    stepper.fail_next = True
    failed = together(turn(loop, 1), turn(loop, 2, tokens=50))
    after = together(turn(loop, 3))
    loop.leave()
    assert str(failed[0]) == "RuntimeError: out of memory" and stepper.told.count(("start over",)) == 1
    assert after[0].token_ids == (3, 3, 3)


def test_a_loop_without_work_waits_without_computing() -> None:
    loop = StepLoop(Stepper())
    together(turn(loop, 1))
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    loop.leave()


def test_a_loop_that_broke_says_so_to_everyone() -> None:
    stepper = Stepper()
    stepper.abort = lambda name: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    loop = StepLoop(stepper)

    async def scenario() -> list[Any]:
        calls = [asyncio.create_task(turn(loop, i, tokens=5000)) for i in range(2)]
        await asyncio.sleep(0.05)
        calls[0].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return [*outcomes, *await asyncio.gather(turn(loop, 3), return_exceptions=True)]

    cancelled, *broken = asyncio.run(scenario())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert all(isinstance(error, EngineError) and "ZeroDivisionError" in str(error) for error in broken)
    with pytest.raises(EngineError, match="the step loop broke"):
        loop.leave()


@pytest.mark.parametrize("seed", range(4))
def test_ranks_compute_the_same_batches_whatever_happens_when(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    steppers = [Stepper(delay=0.004), Stepper(delay=0.001)]
    ranks = Ranks(monkeypatch, steppers)
    plans = [[(rng.random() * 0.05, rng.randint(1, 20), rng.random() < 0.3) for _ in range(count)] for count in (9, 4)]

    async def call(loop: StepLoop, number: int, wait: float, tokens: int, abandon: bool) -> Completion | None:
        await asyncio.sleep(wait)
        task = asyncio.create_task(turn(loop, number, tokens, [picture(number % 3)]))
        if not abandon:
            return await task
        await asyncio.sleep(wait / 2)
        task.cancel()
        return None

    async def rank(number: int) -> list[Completion | None]:
        loop = ranks.loops[number]
        return await asyncio.gather(*(call(loop, 10 * number + i, *plan) for i, plan in enumerate(plans[number])))

    results: list[Any] = [None, None]
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, asyncio.run(rank(i)))) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    ranks.leave()
    assert steppers[0].told == steppers[1].told and not steppers[0].batch
    for number, completions in enumerate(results):
        for i, (completion, (_, tokens, abandoned)) in enumerate(zip(completions, plans[number], strict=True)):
            assert abandoned or completion.token_ids == (10 * number + i,) * tokens


def test_a_picture_travels_to_the_other_rank_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steppers = [Stepper(), Stepper()]
    ranks = Ranks(monkeypatch, steppers)
    for number in range(3):
        together(turn(ranks.loops[0], number, images=[picture(7)]))
    together(turn(ranks.loops[1], 9, images=[picture(7), picture(8)]))
    ranks.leave()
    sent = [list(share.images) for share in ranks.shares[0] + ranks.shares[1] if share.images]
    assert sent == [["key7"], ["key8"]]
    added = [entry for entry in steppers[1].told if entry[0] == "add"]
    assert [len(prepared) for *_, prepared in added] == [1, 1, 1, 2]
    assert added[0][3] == (picture(7).image.tobytes(),)


def test_a_failure_on_one_rank_is_a_failure_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    steppers = [Stepper(), Stepper(problem=lambda request: request.token_ids[0] == 5)]
    ranks = Ranks(monkeypatch, steppers)
    [unprepared] = together(turn(ranks.loops[0], 5))
    assert str(unprepared) == "ValueError: cannot prepare (5, 1)"
    steppers[1].fail_next = True
    [failed] = together(turn(ranks.loops[0], 6, tokens=50))
    [after] = together(turn(ranks.loops[1], 7))
    ranks.leave()
    assert str(failed) == "RuntimeError: out of memory" and after.token_ids == (7, 7, 7)
    assert [stepper.told.count(("start over",)) for stepper in steppers] == [1, 1]


def test_a_rank_that_wants_to_leave_steps_for_the_others_until_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    steppers = [Stepper(), Stepper()]
    ranks = Ranks(monkeypatch, steppers)
    leaving = threading.Thread(target=ranks.loops[1].leave)
    leaving.start()
    [completion] = together(turn(ranks.loops[0], 4, tokens=20))
    assert leaving.is_alive() and completion.token_ids == (4,) * 20
    [refused] = together(turn(ranks.loops[1], 4))
    assert isinstance(refused, EngineError) and "over" in str(refused)
    ranks.loops[0].leave()
    leaving.join(10)
    assert not leaving.is_alive() and steppers[0].told == steppers[1].told


def test_a_group_at_rest_looks_for_news_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, [Stepper(), Stepper()])
    time.sleep(0.5)
    ranks.leave()
    assert len(ranks.shares[0]) < 5 + 0.6 / step_loop._LONGEST_REST
