"""Calls one backend so that it is neither flooded nor waited for: slots, rate, deadline, retries, circuit breaker.

A call ends by its deadline, waiting for a slot, for a place in the rate and for another try included. A backend that
ignores its cancellation is left behind. Whatever a backend raises, the caller gets a `SearchError`.
"""

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError, SearchLost
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.backend import Answer, SearchBackend
from mmsearch_trl.search.calls.breaker import CircuitBreaker
from mmsearch_trl.search.calls.budget import Budget
from mmsearch_trl.search.calls.cost import count_try
from mmsearch_trl.search.calls.deadline import ending_at
from mmsearch_trl.search.calls.rate import TokenBucket
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.calls.validation import checked_answer


logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1
_PASSING = frozenset(
    {FailureKind.TIMEOUT, FailureKind.RATE_LIMITED, FailureKind.UNAVAILABLE, FailureKind.BAD_RESPONSE}
)
"""Failures after which the same question may be answered."""
_BLAMED = _PASSING - {FailureKind.RATE_LIMITED}
"""Failures that say that a backend is down; one that asks for patience is up."""

QueryT = TypeVar("QueryT")


class _NotAdmitted(SearchError):
    """There was no slot, no place in the rate, or the circuit breaker is open: trying again would not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPolicy:
    """How a backend is called.

    Attributes:
        timeout_s: Seconds from a call to its end, at most.
        try_timeout_s: Seconds that one try of it may take.
        retries: Further tries after a failure that may pass, with growing, random pauses.
        max_concurrency: Tries under way at a time; further ones wait.
        calls_per_second: Tries begun a second, in the long run; None for any number.
    """

    timeout_s: float = 20.0
    try_timeout_s: float = 10.0
    retries: int = 2
    max_concurrency: int = 64
    calls_per_second: float | None = None


class BackendClient(Generic[QueryT]):
    """Calls one backend.

    Args:
        k: Most hits of an answer.
        budget: Paid calls that may still be made, where the backend is a paid one.
        thumbnail_side: Pixels to which the longer side of a larger image is brought; None for any size.
    """

    def __init__(
        self,
        tool: ActionKind,
        backend: SearchBackend[QueryT],
        policy: CallPolicy,
        k: int,
        *,
        thumbnail_side: int | None = None,
        budget: Budget | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._tool = tool
        self._backend = backend
        self._policy = policy
        self._k = k
        self._side = thumbnail_side
        self._budget = budget if is_paid(backend) else None
        self._breaker = breaker or CircuitBreaker()
        self._bucket = TokenBucket(policy.calls_per_second) if policy.calls_per_second else None
        self._slots = asyncio.Semaphore(policy.max_concurrency)
        self._resumes_at = 0.0
        """Until when the backend has asked not to be called (`Retry-After`)."""

    async def call(self, query: QueryT) -> Answer:
        """A checked answer; its tries are counted (`cost.py`).

        Raises:
            SearchError: of the last try.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._policy.timeout_s
        tries, error = 0, None
        while True:
            try:
                async with self._admitted(deadline):
                    tries += 1
                    count_try()
                    return await self._try(query, deadline)
            except _NotAdmitted as refused:
                error = error or refused
                break
            except SearchError as failed:
                error = failed
            # Random, so that calls that failed together do not come back together.
            pause = max(_FIRST_PAUSE_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5), error.retry_after or 0.0)
            if error.failure.kind not in _PASSING or tries > self._policy.retries or now() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        raise error

    async def check(self) -> None:
        """See that the backend is ready, where it can tell, in the time of one try.

        Raises:
            SearchLost: it is not.
        """
        if (check := getattr(self._backend, "check", None)) is None:
            return
        reason = f"no answer within {self._policy.try_timeout_s:g} s"
        try:
            async with asyncio.timeout(self._policy.try_timeout_s):
                return await check()
        except SearchError as error:
            reason = str(error)
        except TimeoutError:
            pass
        raise SearchLost(f"the search backend {self._backend.name} cannot be used: {reason}")

    async def disconnect(self) -> None:
        """Close the backend's connections; the next call, on whatever event loop, opens them again."""
        self._slots = asyncio.Semaphore(self._policy.max_concurrency)  # one that has had waiters belongs to their loop
        if (close := getattr(self._backend, "close", None)) is not None:
            await close()

    @asynccontextmanager
    async def _admitted(self, deadline: float) -> AsyncIterator[None]:
        """With a slot, at a time when the backend may be called; its breaker is told how it went."""
        now = asyncio.get_running_loop().time
        async with self._slot(deadline):
            self._check_breaker(now())
            await self._wait_for_rate(deadline)
            self._check_breaker(now())  # other calls may have failed meanwhile
            if self._budget is not None:
                self._budget.spend()  # after the waits: a call that is not made is not paid for
            self._breaker.let_through(now())
            try:
                yield
            except SearchError as error:
                self._breaker.ended(failed=error.failure.kind in _BLAMED, now=now())
                raise
            except BaseException:
                self._breaker.abandoned()
                raise
            self._breaker.ended(failed=False, now=now())

    def _check_breaker(self, now: float) -> None:
        if self._breaker.refuses(now):
            raise _NotAdmitted(
                FailureKind.UNAVAILABLE, "the backend has failed too often and is left alone for a while"
            )

    async def _try(self, query: QueryT, deadline: float) -> Answer:
        """One try: a checked answer.

        Raises:
            SearchError: whatever went wrong.
        """
        now = asyncio.get_running_loop().time
        try:
            answer = await self._within(query, min(deadline, now() + self._policy.try_timeout_s))
            return checked_answer(self._tool, answer, self._k, self._side)
        except SearchError as error:
            if error.retry_after is not None:  # a pause for all calls, not for this one alone
                self._resumes_at = max(self._resumes_at, now() + error.retry_after)
            raise
        except Exception as error:
            # Only the type is told: the text may hold a key or a page.
            kind, name = type(error).__name__, self._backend.name
            logger.warning("%s: the backend %s raised %s", self._tool.value, name, kind)
            raise SearchError(FailureKind.UNAVAILABLE, f"the backend raised {kind}") from None

    @asynccontextmanager
    async def _slot(self, deadline: float) -> AsyncIterator[None]:
        slots = self._slots
        try:
            async with asyncio.timeout_at(deadline):
                await slots.acquire()
        except TimeoutError:
            raise _NotAdmitted(FailureKind.TIMEOUT, f"no free slot within {self._policy.timeout_s:g} s") from None
        try:
            yield
        finally:
            slots.release()

    async def _wait_for_rate(self, deadline: float) -> None:
        """Until the rate allows another call, and the pause that the backend asked for is over."""
        now = asyncio.get_running_loop().time()
        wait = self._resumes_at - now
        if wait >= deadline - now:
            raise _NotAdmitted(FailureKind.RATE_LIMITED, f"the backend asks for a pause of {wait:.0f} s")
        if self._bucket is not None:
            place = self._bucket.reserve(now)
            if place >= deadline - now:
                self._bucket.give_back()  # or those behind would wait for a call that is never made
                raise _NotAdmitted(
                    FailureKind.RATE_LIMITED, "the allowed rate of calls leaves no room before the deadline"
                )
            wait = max(wait, place)
        if wait > 0:
            await asyncio.sleep(wait)

    async def _within(self, query: QueryT, limit: float) -> Answer:
        """The backend's answer.

        Raises:
            SearchError: `TIMEOUT` at the limit, or the backend's own.
        """
        start = asyncio.get_running_loop().time()
        # Not wait_for(): it waits until the cancelled call has ended, and a backend may ignore its cancellation.
        with ending_at(limit):
            work = asyncio.ensure_future(call(self._backend, query, self._k))
        # A call that is left behind may still fail: asyncio logs an exception that nobody has looked at.
        work.add_done_callback(lambda work: work.cancelled() or work.exception())
        try:
            await asyncio.wait({work}, timeout=limit - start)
            if not work.done():
                raise SearchError(FailureKind.TIMEOUT, f"no answer within {limit - start:.3g} s")
            if work.cancelled():
                raise SearchError(FailureKind.UNAVAILABLE, "the backend cancelled its own call")
            return work.result()
        finally:
            work.cancel()


def is_paid(backend: SearchBackend[Any]) -> bool:
    return bool(getattr(backend, "paid", False))


async def call(backend: SearchBackend[Any], query: Any, k: int) -> Answer:
    """A backend's answer; where its `search` is a plain function, it runs on a thread."""
    if inspect.iscoroutinefunction(backend.search):
        return await backend.search(query, k)
    answer = await call_blocking(backend.search, query, k)
    return await answer if inspect.isawaitable(answer) else answer
