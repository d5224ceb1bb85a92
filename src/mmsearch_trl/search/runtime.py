"""The one way through which a rollout searches. Every call ends, in time, in an `Observation`.

1. A failure is a value: whatever a backend does (raise, hang, return nonsense), the caller gets a typed `Failure`.
   Only the caller's own cancellation is raised.
2. Identical calls in flight are one call (`calls/single_flight.py`).
3. Results are cached in a `ResultStore`, failures never. With `Mode.REPLAY` they come from there alone.
4. A backend is called with a deadline, at a rate, and again where that helps (`calls/backend_client.py`). One whose
   `search` is a plain function runs on a daemon thread.
5. A runtime is used on one event loop at a time, to which its connections and the calls in flight belong.
   `disconnect` ends that; use on a second loop before it is a `RuntimeError`.
"""

import asyncio
import logging
import threading
import time
from dataclasses import replace
from enum import StrEnum
from typing import Any

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import Failure, FailureKind, Hit, ImageQuery, Observation
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.search.cache.store import ResultStore, answer_key
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.backend_client import BackendClient, CallPolicy, is_paid
from mmsearch_trl.search.calls.budget import Budget
from mmsearch_trl.search.calls.cost import Cost, counting
from mmsearch_trl.search.calls.record import CallRecord
from mmsearch_trl.search.calls.single_flight import CallCancelled, SingleFlight
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.calls.totals import SearchTotals, totals_of
from mmsearch_trl.search.calls.validation import checked_answer
from mmsearch_trl.search.query import identity, normalise_query


logger = logging.getLogger(__name__)


class Mode(StrEnum):
    """What the cache is used for.

    LIVE: a cached result saves the call. RECORD: every call is made, and its result replaces the cached one. REPLAY:
    no call is made; a query without a cached result is a `NOT_CACHED` failure.
    """

    LIVE = "live"
    RECORD = "record"
    REPLAY = "replay"


class SearchRuntime:
    """Answers searches through at most one backend per tool.

    Args:
        image: Answers image searches; None makes every image search a typed failure.
        text: Answers text searches; None likewise.
        image_policy: How the image backend is called.
        text_policy: How the text backend is called.
        k_image: Most hits of an image search.
        k_text: Most hits of a text search.
        thumbnail_side: Pixels to which the longer side of a larger tool image is brought; None leaves images alone.
        budget: Paid calls that may be made; by default any number.
        image_price: Dollars that a try of a paid image backend costs; 0 where it is not known.
        text_price: Likewise of a paid text backend.
        cache: Of results; the runtime closes it.
        mode: What the cache is for.

    Raises:
        UserError: a mode that needs a cache has none.
    """

    def __init__(
        self,
        image: SearchBackend[ImageQuery] | None,
        text: SearchBackend[str] | None,
        *,
        image_policy: CallPolicy = CallPolicy(),  # noqa: B008  (frozen)
        text_policy: CallPolicy = CallPolicy(),  # noqa: B008
        k_image: int = 5,
        k_text: int = 3,
        thumbnail_side: int | None = None,
        budget: Budget | None = None,
        image_price: float = 0.0,
        text_price: float = 0.0,
        cache: ResultStore | None = None,
        mode: Mode = Mode.LIVE,
    ) -> None:
        if cache is None and mode is not Mode.LIVE:
            raise UserError(f"mode {mode.value!r} needs a cache")
        self.k = {ActionKind.IMAGE_SEARCH: k_image, ActionKind.TEXT_SEARCH: k_text}
        self.mode = mode
        self.records: list[CallRecord] = []
        self.totals: dict[ActionKind, SearchTotals] = totals_of([])
        """Of all calls so far, those whose records were drained included."""
        self._side = thumbnail_side
        self._image = image
        self._text = text
        backends: dict[ActionKind, Any] = {ActionKind.IMAGE_SEARCH: image, ActionKind.TEXT_SEARCH: text}
        policies = {ActionKind.IMAGE_SEARCH: image_policy, ActionKind.TEXT_SEARCH: text_policy}
        self._clients: dict[ActionKind, BackendClient[Any]] = {
            tool: BackendClient(
                tool, backend, policies[tool], self.k[tool], thumbnail_side=thumbnail_side, budget=budget
            )
            for tool, backend in backends.items()
            if backend is not None
        }
        self._paid = {tool: backend is not None and is_paid(backend) for tool, backend in backends.items()}
        self._price = {ActionKind.IMAGE_SEARCH: image_price, ActionKind.TEXT_SEARCH: text_price}
        self._cache = cache
        self._records_lock = threading.Lock()  # the trainer drains them from its own thread
        self._in_flight: SingleFlight[tuple[Observation, Cost]] = SingleFlight()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """On which the runtime is in use; None before the first call and after `disconnect`."""

    async def answer(self, action: Action, trajectory: Trajectory) -> Observation:
        """Carry out the search that a turn asks for; raises nothing but `asyncio.CancelledError`."""
        if action.kind is ActionKind.TEXT_SEARCH:
            return await self.text_search(action.text or "")
        query = ImageQuery.of(trajectory.task)
        if query is None:
            failure = Failure(FailureKind.INVALID_QUERY, f"Task {trajectory.task.id} has no image to search by.")
            return Observation(tool=ActionKind.IMAGE_SEARCH, failure=failure)
        return await self.image_search(query)

    async def image_search(self, query: ImageQuery) -> Observation:
        """Look an image up. Raises nothing but `asyncio.CancelledError`."""
        return await self._observe(ActionKind.IMAGE_SEARCH, self._image, query)

    async def text_search(self, query: str) -> Observation:
        """Search text. The query is sent in Unicode normal form C with each run of blanks as one; an empty one is the
        policy's failure (`INVALID_QUERY`). Raises nothing but `asyncio.CancelledError`."""
        return await self._observe(ActionKind.TEXT_SEARCH, self._text, normalise_query(query))

    def answers(self, tool: ActionKind) -> bool:
        """Whether there is a backend for a tool."""
        return tool in self._clients

    async def check(self) -> None:
        """See that the backends which can tell are ready, at no cost; leaves no connection open.

        Raises:
            SearchLost: one is not, such as for a key that it refuses.
        """
        if self.mode is Mode.REPLAY:
            return
        self._claim_loop()
        try:
            for client in self._clients.values():
                await client.check()
        finally:
            await self.disconnect()

    async def disconnect(self) -> None:
        """End the use of the runtime on the running loop: cancel what is in flight and close all connections. The next
        search, on this loop or another, opens them again."""
        self._claim_loop()
        self._in_flight.cancel()
        for client in self._clients.values():
            await client.disconnect()
        self._loop = None

    def drain_records(self) -> list[CallRecord]:
        """Take the log of the calls that ended since the last time."""
        with self._records_lock:
            records, self.records = self.records, []
        return records

    def close(self) -> None:
        """Cancel what is in flight, from any thread, and close the cache. Later calls are typed failures."""
        self._closed = True
        self._in_flight.cancel()
        if self._cache is not None:
            self._cache.close()

    async def _observe(self, tool: ActionKind, backend: SearchBackend[Any] | None, query: Any) -> Observation:
        """Time a call, record it, and turn what is wrong before it begins into a failure."""
        self._claim_loop()
        start, cost = time.perf_counter(), Cost()
        if backend is None:
            observation = _failed(tool, "", FailureKind.INVALID_QUERY, f"no {tool.replace('_', ' ')} is configured")
        elif self._closed:
            observation = _failed(tool, backend.name, FailureKind.UNAVAILABLE, "the search runtime is closed")
        elif query == "":
            observation = _failed(tool, backend.name, FailureKind.INVALID_QUERY, "the query is empty")
        else:
            try:
                key = answer_key(tool, backend.fingerprint, await identity(backend, query), self.k[tool])
                observation, cost = await self._join(tool, backend, query, key)
            except Exception as error:
                observation = _unexpected(tool, backend.name, error)
        # Its own time, of a shared call too: a metric of how long rollouts wait.
        observation = replace(observation, seconds=time.perf_counter() - start)
        self._record(observation, cost)
        return observation

    def _claim_loop(self) -> None:
        """
        Raises:
            RuntimeError: the runtime is in use on another event loop, and `disconnect` was not awaited there.
        """
        running = asyncio.get_running_loop()
        if self._loop not in (None, running):
            raise RuntimeError("the search runtime is in use on another event loop: await disconnect() there first")
        self._loop = running

    def _record(self, observation: Observation, cost: Cost) -> None:
        """Put a call into the log, with its share of the cost of its answer."""
        tool = ActionKind(observation.tool)
        paid = self._paid[tool]
        record = CallRecord(
            tool=tool,
            seconds=observation.seconds,
            cached=observation.cached,
            coalesced=observation.coalesced,
            tries=cost.tries,
            paid=paid,
            failure=observation.failure.kind if observation.failure else None,
            bytes=cost.bytes,
            price=cost.tries * self._price[tool] if paid else 0.0,
        )
        with self._records_lock:
            self.records.append(record)
            self.totals[tool] += SearchTotals.of(record)

    async def _join(
        self, tool: ActionKind, backend: SearchBackend[Any], query: Any, key: str
    ) -> tuple[Observation, Cost]:
        """The outcome of the call under `key`, which is begun if there is none in flight, and this caller's share of
        its cost: all of it for the first who gets the outcome, nothing for the others."""

        async def begin() -> tuple[Observation, Cost]:
            start = time.perf_counter()
            with counting() as cost:
                try:
                    observation = await self._answer(tool, backend, query, key, cost)
                except asyncio.CancelledError:
                    if cost.tries and not self._closed:  # every caller has left, but a paid try is still paid for
                        left = Observation(tool=tool, backend=backend.name, seconds=time.perf_counter() - start)
                        self._record(left, cost)
                    raise
            return replace(observation, tries=cost.tries, bytes=cost.bytes), cost

        try:
            (observation, cost), coalesced = await self._in_flight.join(key, begin)
        except CallCancelled:
            failed = _failed(tool, backend.name, FailureKind.UNAVAILABLE, "the search runtime was closed")
            return failed, Cost()
        return replace(observation, coalesced=coalesced), cost.take()

    async def _answer(
        self, tool: ActionKind, backend: SearchBackend[Any], query: Any, key: str, cost: Cost
    ) -> Observation:
        """One call: from the cache, or from the backend."""
        cache, replay = self._cache, self.mode is Mode.REPLAY
        try:
            if cache is not None and self.mode is not Mode.RECORD:
                cached = await call_blocking(self._cached, cache, tool, key)
                if cached is not None:
                    return Observation(tool=tool, hits=cached, backend=backend.name, cached=True)
            if replay:
                return _failed(tool, backend.name, FailureKind.NOT_CACHED, "no answer to this query was recorded")
            answer = await self._clients[tool].call(query)
            if cache is not None and not cost.cut:
                # What the cache will give: the model sees the same pixels now as later.
                answer = await call_blocking(cache.put, key, answer, self.mode is Mode.RECORD)
            return Observation(tool=tool, hits=tuple(answer), backend=backend.name)
        except SearchError as error:
            return _failed(tool, backend.name, error.failure.kind, error.failure.message)
        except Exception as error:
            return _unexpected(tool, backend.name, error)

    def _cached(self, cache: ResultStore, tool: ActionKind, key: str) -> tuple[Hit, ...] | None:
        """A cached result, checked as a backend's is; one that is another tool's is dropped."""
        found = cache.get(key, however_old=self.mode is Mode.REPLAY)
        try:
            return None if found is None else checked_answer(tool, found, self.k[tool], self._side)
        except SearchError as error:
            logger.warning("A wrong entry of the answer cache %s is dropped: %s", cache.path, error.failure.message)
            cache.drop(key)
            return None


def _failed(tool: ActionKind, backend: str, kind: FailureKind, message: str) -> Observation:
    return Observation(tool=tool, failure=Failure(kind, message), backend=backend)


def _unexpected(tool: ActionKind, backend: str, error: Exception) -> Observation:
    """A failure from an exception that no backend should raise. Only its type is told: its text may hold a key."""
    logger.warning("%s: the backend %s raised %s", tool, backend, type(error).__name__)
    return _failed(tool, backend, FailureKind.UNAVAILABLE, f"the backend raised {type(error).__name__}")
