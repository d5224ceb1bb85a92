"""How one backend is asked: rate, pauses, tries, deadline, circuit breaker."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.calls.backend_client import BackendClient, CallPolicy
from mmsearch_trl.search.calls.breaker import CircuitBreaker
from mmsearch_trl.search.calls.cost import counting


HITS = (TextHit("title", "text"),)


class Backend:
    """Plays a list of outcomes, the last one for ever; a number is a wait before the next of them."""

    name, fingerprint = "test", "1"

    def __init__(self, *outcomes: SearchError | float | None) -> None:
        self.outcomes = list(outcomes)
        self.times: list[float] = []

    async def search(self, query: str, k: int) -> Answer:
        self.times.append(time.monotonic())
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0] if self.outcomes else None
        if isinstance(outcome, SearchError):
            raise outcome
        await asyncio.sleep(outcome or 0.0)
        return HITS


def failure(kind: FailureKind, retry_after: float | None = None) -> SearchError:
    return SearchError(kind, "not now", retry_after=retry_after)


def asking(backend: Backend, calls: int = 1, breaker: CircuitBreaker | None = None, **policy: Any) -> list[Any]:
    """The outcomes of so many calls at once: answers, or failures."""

    async def run() -> list[Any]:
        client = BackendClient(ActionKind.TEXT_SEARCH, backend, CallPolicy(**policy), 3, breaker=breaker)
        return await asyncio.gather(*(client.call("who") for _ in range(calls)), return_exceptions=True)

    return asyncio.run(run())


def kind(outcome: Any) -> FailureKind:
    assert isinstance(outcome, SearchError), outcome
    return outcome.failure.kind


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    return work(), time.monotonic() - start


def test_tries_are_counted() -> None:
    with counting() as cost:
        assert asking(Backend(failure(FailureKind.UNAVAILABLE), None)) == [HITS]
    assert cost.tries == 2


def test_a_pause_that_the_backend_asks_for_is_kept() -> None:
    backend = Backend(failure(FailureKind.RATE_LIMITED, retry_after=0.4), None)
    assert asking(backend) == [HITS]
    assert backend.times[1] - backend.times[0] >= 0.4


def test_a_pause_holds_for_every_call_to_the_backend() -> None:
    backend = Backend(failure(FailureKind.RATE_LIMITED, retry_after=0.4), None)

    async def run() -> None:
        client = BackendClient(ActionKind.TEXT_SEARCH, backend, CallPolicy(), 3)
        first = asyncio.ensure_future(client.call("who"))
        while not backend.times:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        await client.call("what")
        await first

    asyncio.run(run())
    assert backend.times[1] - backend.times[0] >= 0.39


def test_a_pause_beyond_the_deadline_fails_at_once() -> None:
    backend = Backend(failure(FailureKind.RATE_LIMITED, retry_after=2000.0))
    [outcome], seconds = timed(lambda: asking(backend))
    assert kind(outcome) is FailureKind.RATE_LIMITED and seconds < 0.5
    assert len(backend.times) == 1


@pytest.mark.parametrize(
    "lasting",
    [
        FailureKind.QUOTA_SPENT,
        FailureKind.KEY_REFUSED,
        FailureKind.BLOCKED,
        FailureKind.TOO_LARGE,
        FailureKind.NOT_CACHED,
        FailureKind.INVALID_QUERY,
    ],
)
def test_a_failure_that_will_not_pass_is_not_tried_again(lasting: FailureKind) -> None:
    backend = Backend(failure(lasting))
    assert [kind(outcome) for outcome in asking(backend)] == [lasting]
    assert len(backend.times) == 1


def test_a_try_that_hangs_leaves_time_for_another() -> None:
    backend = Backend(60.0, 0.0)
    [outcome], seconds = timed(lambda: asking(backend, timeout_s=5.0, try_timeout_s=0.2))
    assert outcome == HITS and len(backend.times) == 2 and seconds < 1.0


def test_no_try_goes_beyond_the_deadline() -> None:
    backend = Backend(60.0)
    [outcome], seconds = timed(lambda: asking(backend, timeout_s=0.5, try_timeout_s=0.2, retries=99))
    assert kind(outcome) is FailureKind.TIMEOUT and seconds < 0.7


def test_the_rate_is_kept_over_calls_and_tries() -> None:
    backend = Backend(failure(FailureKind.UNAVAILABLE), failure(FailureKind.UNAVAILABLE), None)
    outcomes = asking(backend, calls=4, calls_per_second=10.0)
    assert len(outcomes) == 4 and not any(isinstance(outcome, SearchError) for outcome in outcomes)
    gaps = [later - earlier for earlier, later in zip(backend.times, backend.times[1:], strict=False)]
    assert len(backend.times) == 6 and min(gaps) > 0.08


def test_a_place_in_the_rate_that_comes_too_late_is_a_failure_at_once() -> None:
    backend = Backend(None)
    outcomes, seconds = timed(lambda: asking(backend, calls=3, calls_per_second=1.0, timeout_s=0.5))
    assert [isinstance(outcome, SearchError) for outcome in outcomes] == [False, True, True]
    assert {kind(outcome) for outcome in outcomes[1:]} == {FailureKind.RATE_LIMITED}
    assert seconds < 0.4 and len(backend.times) == 1


def test_a_backend_that_is_down_is_left_alone() -> None:
    backend = Backend(failure(FailureKind.UNAVAILABLE))
    breaker = CircuitBreaker(failures=5, pause_s=30.0)
    outcomes = asking(backend, calls=50, breaker=breaker, retries=3, max_concurrency=1)
    assert {kind(outcome) for outcome in outcomes} == {FailureKind.UNAVAILABLE}
    assert len(backend.times) == 5


def test_a_backend_that_is_back_is_asked_again() -> None:
    backend = Backend(*[failure(FailureKind.UNAVAILABLE)] * 2, None)
    breaker = CircuitBreaker(failures=2, pause_s=0.2)

    async def run() -> Answer:
        client = BackendClient(ActionKind.TEXT_SEARCH, backend, CallPolicy(retries=0), 3, breaker=breaker)
        for _ in range(3):
            with pytest.raises(SearchError):
                await client.call("who")
        await asyncio.sleep(0.25)
        return await client.call("who")

    assert asyncio.run(run()) == HITS
    assert len(backend.times) == 3


def test_a_backend_that_asks_for_patience_is_not_taken_for_dead() -> None:
    breaker = CircuitBreaker(failures=2, pause_s=30.0)
    asking(Backend(failure(FailureKind.RATE_LIMITED)), breaker=breaker, retries=2)
    assert asking(Backend(None), breaker=breaker) == [HITS]


def test_a_cancelled_call_frees_its_slot_and_its_turn_to_probe() -> None:
    backend, breaker = Backend(60.0, 0.0), CircuitBreaker(failures=1, pause_s=0.0)
    breaker.ended(failed=True, now=0.0)

    async def run() -> Answer:
        client = BackendClient(ActionKind.TEXT_SEARCH, backend, CallPolicy(max_concurrency=1), 3, breaker=breaker)
        task = asyncio.ensure_future(client.call("who"))
        while not backend.times:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        return await client.call("who")

    assert asyncio.run(run()) == HITS
