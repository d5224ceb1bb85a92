"""The one way through which a rollout searches. Every call ends, in time, in an `Observation`.

1. A failure is a value: whatever a backend does (raise, hang, return nonsense), the caller gets a typed `Failure`.
   Only the caller's own cancellation is raised.
2. A call ends by its deadline, waiting for a free slot and trying again included; a backend that ignores its
   cancellation is left behind. Backends whose `search` is a plain function run on a daemon thread.
3. Identical calls in flight are one call: a group of rollouts that looks up one image costs one search and sees one
   answer. A waiter that is cancelled leaves the others undisturbed; when the last is gone, the call is cancelled.
4. Answers are kept in an `AnswerStore`, failures never.

Slots and calls in flight belong to an event loop and are made when a loop first searches, so one runtime serves a loop
in a daemon thread, and later another.
"""

import asyncio
import inspect
import logging
import random
import threading
import time
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mmsearch_trl.search.store import AnswerStore, answer_key
from mmsearch_trl.search.threads import call_blocking
from mmsearch_trl.search.types import (
    Answer,
    CallRecord,
    Failure,
    FailureKind,
    ImageQuery,
    Observation,
    RawReply,
    SearchBackend,
    SearchError,
    Tool,
    image_digest,
)
from mmsearch_trl.search.validation import checked_answer


logger = logging.getLogger(__name__)

MAX_QUERY_CHARS = 2000
"""A longer text query is cut: it leaves the machine, and no search engine reads more."""


_FIRST_PAUSE_S = 0.1
_PASSING = frozenset({FailureKind.RATE_LIMITED, FailureKind.UNAVAILABLE, FailureKind.BAD_RESPONSE})
"""Failures after which the same question may be answered; a timeout has used up the time for another try."""


@dataclass(slots=True)
class _Flight:
    """A call in flight and the number of callers that wait for it."""

    task: asyncio.Task[Observation]
    waiters: int = 0


@dataclass(slots=True)
class _LoopState:
    slots: asyncio.Semaphore
    flights: dict[str, _Flight] = field(default_factory=dict)


class SearchRuntime:
    """Answers searches through at most one backend per tool.

    Args:
        image: Answers image searches; None makes every image search a typed failure.
        text: Answers text searches; None likewise.
        k_image: Most hits of an image search.
        k_text: Most hits of a text search.
        timeout_s: Seconds from a call to its end, at most, tries and pauses included.
        retries: Further tries after a failure that may pass, with growing pauses.
        thumbnail_side: Pixels to which the longer side of a larger tool image is brought; None leaves images alone.
        max_concurrency: Backend calls in flight at a time, per event loop; further ones wait.
        cache: Where answers are kept; the runtime closes it.
    """

    def __init__(
        self,
        image: SearchBackend[ImageQuery] | None,
        text: SearchBackend[str] | None,
        *,
        k_image: int = 5,
        k_text: int = 3,
        timeout_s: float = 20.0,
        retries: int = 2,
        thumbnail_side: int | None = None,
        max_concurrency: int = 64,
        cache: AnswerStore | None = None,
    ) -> None:
        self.k = {Tool.IMAGE_SEARCH: k_image, Tool.TEXT_SEARCH: k_text}
        self.timeout_s = timeout_s
        self.retries = retries
        self.thumbnail_side = thumbnail_side
        self.max_concurrency = max_concurrency
        self.records: list[CallRecord] = []
        self._image = image
        self._text = text
        self._cache = cache
        self._records_lock = threading.Lock()
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._closed = False

    async def image_search(self, query: ImageQuery) -> Observation:
        """Look a picture up. Raises nothing but `asyncio.CancelledError`."""
        return await self._observe(Tool.IMAGE_SEARCH, self._image, query, _image_identity)

    async def text_search(self, query: str) -> Observation:
        """Search text. The query is sent in Unicode normal form C with each run of blanks as one; an empty one is the
        policy's failure (`INVALID_QUERY`). Raises nothing but `asyncio.CancelledError`."""
        return await self._observe(Tool.TEXT_SEARCH, self._text, normalise_query(query), _text_identity)

    def drain_records(self) -> list[CallRecord]:
        """Take the log of the calls that ended since the last time."""
        with self._records_lock:
            records, self.records = self.records, []
        return records

    def close(self) -> None:
        """Cancel what is in flight, on whatever loop, and close the cache. Later calls are typed failures."""
        self._closed = True
        for loop, state in list(self._loops.items()):
            if not loop.is_closed():
                for flight in list(state.flights.values()):
                    loop.call_soon_threadsafe(flight.task.cancel)
        if self._cache is not None:
            self._cache.close()

    async def _observe(
        self,
        tool: Tool,
        backend: SearchBackend[Any] | None,
        query: Any,
        identify: Callable[[Any, Any], Awaitable[list[str | None]]],
    ) -> Observation:
        """Time a call, record it, and turn what is wrong before it begins into a failure."""
        start = time.perf_counter()
        if backend is None:
            observation = _failed(
                tool, "", FailureKind.UNAVAILABLE, f"no {tool.value.replace('_', ' ')} is configured"
            )
        elif self._closed:
            observation = _failed(tool, backend.name, FailureKind.UNAVAILABLE, "the search runtime is closed")
        elif query == "":
            observation = _failed(tool, backend.name, FailureKind.INVALID_QUERY, "the query is empty")
        else:
            try:
                identity = await identify(backend, query)
                key = answer_key(tool, backend.fingerprint, identity, self.k[tool])
                observation = await self._join(tool, backend, query, key)
            except Exception as error:
                observation = _unexpected(tool, backend.name, error)
        observation = replace(observation, seconds=time.perf_counter() - start)
        self._record(observation)
        return observation

    def _record(self, observation: Observation) -> None:
        failure = observation.failure.kind if observation.failure else None
        record = CallRecord(observation.tool, observation.seconds, observation.cached, observation.coalesced, failure)
        with self._records_lock:
            self.records.append(record)

    def _state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            for gone in [other for other in self._loops if other.is_closed()]:
                del self._loops[gone]
            self._loops[loop] = _LoopState(asyncio.Semaphore(self.max_concurrency))
        return self._loops[loop]

    async def _join(self, tool: Tool, backend: SearchBackend[Any], query: Any, key: str) -> Observation:
        """Wait for the call in flight under `key`, beginning it if there is none."""
        flights = self._state().flights
        flight = flights.get(key)
        coalesced = flight is not None
        if flight is None:
            flight = flights[key] = _Flight(asyncio.create_task(self._answer(tool, backend, query, key)))
        flight.waiters += 1
        try:
            # Not shield(): it would raise the flight's own cancellation as if it were the caller's.
            await asyncio.wait({flight.task})
        finally:
            flight.waiters -= 1
            # A caller that comes later must not join a call that has ended or is being cancelled.
            if flight.task.done() or not flight.waiters:
                if flights.get(key) is flight:
                    del flights[key]
                flight.task.cancel()
        if flight.task.cancelled():
            return _failed(tool, backend.name, FailureKind.UNAVAILABLE, "the search runtime was closed")
        return replace(flight.task.result(), coalesced=coalesced)

    async def _answer(self, tool: Tool, backend: SearchBackend[Any], query: Any, key: str) -> Observation:
        """One call: from the cache, or from the backend within the deadline."""
        try:
            if self._cache is not None:
                kept = await call_blocking(self._cache.get, key)
                if kept is not None:
                    return replace(_succeeded(tool, backend.name, kept), cached=True)
            answer = await self._ask_again(tool, backend, query)
            if self._cache is not None:
                answer = await call_blocking(self._cache.put, key, answer)
            return _succeeded(tool, backend.name, answer)
        except SearchError as error:
            return _failed(tool, backend.name, error.failure.kind, error.failure.message)
        except Exception as error:
            return _unexpected(tool, backend.name, error)

    async def _ask_again(self, tool: Tool, backend: SearchBackend[Any], query: Any) -> Answer:
        """A checked answer, asked for again after a failure that may pass, while tries and time are left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        for attempt in range(self.retries):
            try:
                answer = await self._ask(tool, backend, query, deadline)
                return checked_answer(tool, answer, self.k[tool], self.thumbnail_side)
            except Exception as error:
                pause = _FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)
                passing = not isinstance(error, SearchError) or error.failure.kind in _PASSING
                if not passing or loop.time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
        answer = await self._ask(tool, backend, query, deadline)
        return checked_answer(tool, answer, self.k[tool], self.thumbnail_side)

    async def _ask(self, tool: Tool, backend: SearchBackend[Any], query: Any, deadline: float) -> Answer:
        """The backend's answer.

        Raises:
            SearchError: `TIMEOUT` at the deadline, or the backend's own.
        """
        slots = self._state().slots
        try:
            async with asyncio.timeout_at(deadline):
                await slots.acquire()
        except TimeoutError:
            raise SearchError(FailureKind.TIMEOUT, f"no free slot within {self.timeout_s:g} s") from None
        work = asyncio.ensure_future(_search(backend, query, self.k[tool]))
        work.add_done_callback(_retrieve)
        try:
            await asyncio.wait({work}, timeout=deadline - asyncio.get_running_loop().time())
            if not work.done():
                raise SearchError(FailureKind.TIMEOUT, f"no answer within {self.timeout_s:g} s")
            if work.cancelled():
                raise SearchError(FailureKind.UNAVAILABLE, "the backend cancelled its own call")
            return work.result()
        finally:
            work.cancel()
            slots.release()


def normalise_query(query: str) -> str:
    """Unicode normal form C, control characters and lone surrogates as blanks, blanks collapsed, length bounded."""
    plain = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in query[:MAX_QUERY_CHARS])
    return " ".join(unicodedata.normalize("NFC", plain).split())


async def _text_identity(backend: SearchBackend[str], query: str) -> list[str | None]:
    return [query]


async def _image_identity(backend: SearchBackend[ImageQuery], query: ImageQuery) -> list[str | None]:
    """The picture's digest; with the names it goes by, unless the backend says that only pixels matter to it."""
    digest = await call_blocking(image_digest, query.image)
    return [digest] if getattr(backend, "by_pixels", False) else [digest, query.data_id, query.url]


async def _search(backend: SearchBackend[Any], query: Any, k: int) -> Answer:
    if inspect.iscoroutinefunction(backend.search):
        return await backend.search(query, k)
    answer = await call_blocking(backend.search, query, k)
    return await answer if inspect.isawaitable(answer) else answer


def _retrieve(work: asyncio.Future[Answer]) -> None:
    """Look at the outcome of a call that was left behind, or asyncio complains that nobody did."""
    if not work.cancelled():
        work.exception()


def _succeeded(tool: Tool, backend: str, answer: Answer) -> Observation:
    if isinstance(answer, RawReply):
        return Observation(tool=tool, raw=answer, backend=backend)
    return Observation(tool=tool, hits=tuple(answer), backend=backend)


def _failed(tool: Tool, backend: str, kind: FailureKind, message: str) -> Observation:
    return Observation(tool=tool, failure=Failure(kind, message), backend=backend)


def _unexpected(tool: Tool, backend: str, error: Exception) -> Observation:
    """A failure from an exception that no backend should raise. Only its type is told: its text may hold a key."""
    logger.warning("%s: the backend %s raised %s", tool.value, backend, type(error).__name__)
    return _failed(tool, backend, FailureKind.UNAVAILABLE, f"the backend raised {type(error).__name__}")
