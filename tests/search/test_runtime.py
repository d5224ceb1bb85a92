import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError, SearchLost
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.image.service import ImageService
from mmsearch_trl.search.query import normalise_query
from mmsearch_trl.search.runtime import Mode, SearchRuntime
from mmsearch_trl.search.text.retriever import Retriever


RED = Image.new("RGB", (8, 8), "red")
HITS = [TextHit(f"title {number}", "text") for number in range(9)]


class Backend:
    """A backend whose behaviour is a coroutine function; counts its calls and how many run at a time."""

    name = "test"
    fingerprint = "test-1"

    def __init__(self, behave: Callable[[Any], Awaitable[Answer]]) -> None:
        self.behave = behave
        self.queries: list[Any] = []
        self.running = self.most = self.cancelled = 0

    async def search(self, query: Any, k: int) -> Answer:
        self.queries.append(query)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self.behave(query)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def returning(answer: Any, seconds: float = 0.0) -> Backend:
    async def behave(query: Any) -> Answer:
        await asyncio.sleep(seconds)
        return answer

    return Backend(behave)


async def begun(backend: Backend, calls: int) -> None:
    """Wait until the backend was asked so often: on a busy machine, time alone does not tell."""
    while len(backend.queries) < calls:
        await asyncio.sleep(0.001)


def raising(error: BaseException) -> Backend:
    async def behave(query: Any) -> Answer:
        raise error

    return Backend(behave)


def text_runtime(backend: Any, *, k_text: int = 3, **policy: Any) -> SearchRuntime:
    return SearchRuntime(None, backend, k_text=k_text, text_policy=CallPolicy(**policy))


def ask(backend: Any, query: str = "who?", **options: Any) -> Observation:
    return asyncio.run(text_runtime(backend, **options).text_search(query))


def kind(observation: Observation) -> FailureKind | None:
    return observation.failure.kind if observation.failure else None


def test_hits_are_cut_to_k_and_named_by_backend() -> None:
    observation = ask(returning(HITS), k_text=2)
    assert observation.hits == tuple(HITS[:2])
    assert (observation.tool, observation.backend, observation.failure) == (ActionKind.TEXT_SEARCH, "test", None)


def test_nothing_found_is_a_success_without_hits() -> None:
    observation = ask(returning([]))
    assert observation.hits == () and observation.failure is None


def test_a_tool_without_backend_is_the_policys_failure() -> None:
    """It was not offered: an outage, which ends runs and leaves turns out of the loss, is something else."""
    runtime = SearchRuntime(None, None)

    async def run() -> tuple[Observation, Observation]:
        return await runtime.text_search("a"), await runtime.image_search(ImageQuery(RED))

    text, image = asyncio.run(run())
    assert kind(text) is kind(image) is FailureKind.INVALID_QUERY
    assert (
        image.failure is not None
        and not image.failure.infrastructure
        and image.failure.message == "no image search is configured"
    )


@pytest.mark.parametrize("query", ["", "  \n\t ", "\0\x1b"])
def test_an_empty_query_is_the_policys_failure_and_is_not_sent(query: str) -> None:
    backend = returning(HITS)
    observation = ask(backend, query)
    assert kind(observation) is FailureKind.INVALID_QUERY and backend.queries == []
    assert observation.failure is not None and not observation.failure.infrastructure


def test_a_query_is_sent_normalised_and_bounded() -> None:
    assert normalise_query(" Cafe\u0301\n \0 who \ud800") == "Caf\u00e9 who"
    assert len(normalise_query("x" * 100_000)) == 2000


def test_a_backends_own_error_keeps_its_kind() -> None:
    observation = ask(raising(SearchError(FailureKind.RATE_LIMITED, "slow down")))
    assert observation.failure is not None
    assert (observation.failure.kind, observation.failure.message) == (FailureKind.RATE_LIMITED, "slow down")


@pytest.mark.parametrize("error", [RuntimeError("key=SECRET"), asyncio.CancelledError(), TimeoutError("SECRET")])
def test_an_unexpected_exception_is_a_failure_that_tells_its_type_only(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    observation = ask(raising(error))
    assert kind(observation) is FailureKind.UNAVAILABLE
    assert "SECRET" not in repr(observation) + caplog.text


@pytest.mark.parametrize("answer", [None, "text", {"a": 1}, [ImageHit("a")], ["a"], [TextHit("a", None)]])  # type: ignore
def test_an_answer_that_is_no_hits_is_a_failure(answer: Any) -> None:
    assert kind(ask(returning(answer))) in (FailureKind.BAD_RESPONSE, FailureKind.UNAVAILABLE)


def test_a_hang_ends_at_the_deadline() -> None:
    backend = returning(HITS, seconds=60)
    observation = ask(backend, timeout_s=0.1)
    assert kind(observation) is FailureKind.TIMEOUT and 0.1 <= observation.seconds < 1
    assert backend.cancelled == 1


def test_a_backend_that_ignores_its_cancellation_is_left_behind_with_its_slot_freed() -> None:
    async def stubborn(query: Any) -> Answer:
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return HITS if query == "2" else []

    async def run() -> list[Observation]:
        runtime = text_runtime(Backend(stubborn), timeout_s=0.1, max_concurrency=1)
        return [await runtime.text_search("0"), await runtime.text_search("1")]

    for observation in asyncio.run(run()):
        assert observation.failure is not None and "no answer within" in observation.failure.message
        assert observation.seconds < 0.4


def test_a_blocking_backend_runs_on_a_thread_and_its_hang_ends_at_the_deadline() -> None:
    class Blocking:
        name = fingerprint = "blocking"

        def search(self, query: str, k: int) -> Sequence[TextHit]:
            if query == "hang":
                threading.Event().wait(30)
            time.sleep(0.1)
            return HITS

    async def run() -> list[Observation]:
        runtime = text_runtime(Blocking(), timeout_s=0.4)
        return await asyncio.gather(*(runtime.text_search(query) for query in ["a", "b", "c", "hang"]))

    start = time.monotonic()
    observations = asyncio.run(run())
    assert [kind(o) for o in observations] == [None, None, None, FailureKind.TIMEOUT]
    assert time.monotonic() - start < 2


def test_no_more_calls_run_than_slots_and_the_wait_counts_towards_the_deadline() -> None:
    async def run(backend: Backend, timeout_s: float) -> list[Observation]:
        runtime = text_runtime(backend, max_concurrency=2, timeout_s=timeout_s)
        return await asyncio.gather(*(runtime.text_search(str(number)) for number in range(6)))

    backend = returning(HITS, seconds=0.02)
    assert all(o.failure is None for o in asyncio.run(run(backend, 5)))
    assert backend.most == 2
    kinds = [kind(o) for o in asyncio.run(run(returning(HITS, seconds=0.2), 0.3))]
    assert kinds[:2] == [None, None] and kinds[2:] == [FailureKind.TIMEOUT] * 4


def test_identical_calls_in_flight_are_one_call() -> None:
    backend = returning([ImageHit("a", None, RED)], seconds=0.05)

    async def run() -> list[Observation]:
        runtime = SearchRuntime(backend, None)
        queries = [ImageQuery(RED.copy(), data_id="x") for _ in range(8)]
        return await asyncio.gather(*(runtime.image_search(query) for query in queries))

    observations = asyncio.run(run())
    assert len(backend.queries) == 1
    assert sorted(o.coalesced for o in observations) == [False] + [True] * 7
    assert len({id(o.hits[0]) for o in observations}) == 1


def test_rows_of_one_picture_share_a_call_only_where_pixels_decide() -> None:
    async def calls(backend: Backend) -> int:
        runtime = SearchRuntime(backend, None)
        await asyncio.gather(*(runtime.image_search(ImageQuery(RED, data_id=name)) for name in "abc"))
        return len(backend.queries)

    by_name, by_pixels = returning([], 0.05), returning([], 0.05)
    by_pixels.by_pixels = True  # type: ignore[attr-defined]
    assert asyncio.run(calls(by_name)) == 3
    assert asyncio.run(calls(by_pixels)) == 1


def test_cancelling_one_waiter_leaves_the_others_and_cancelling_all_ends_the_call() -> None:
    async def run() -> tuple[Observation, Backend]:
        backend = returning(HITS, seconds=0.3)
        runtime = text_runtime(backend)
        first, second = (asyncio.ensure_future(runtime.text_search("a")) for _ in range(2))
        await begun(backend, 1)
        await asyncio.sleep(0.02)
        first.cancel()
        observation = await second
        assert first.cancelled() and backend.cancelled == 0
        alone = asyncio.ensure_future(runtime.text_search("b"))
        await begun(backend, 2)
        alone.cancel()
        await asyncio.wait({alone})
        again = await runtime.text_search("b")
        assert alone.cancelled() and again.failure is None and not again.coalesced
        return observation, backend

    observation, backend = asyncio.run(run())
    assert observation.hits and backend.cancelled == 1 and len(backend.queries) == 3


def test_an_answer_is_kept_and_a_failure_is_not(tmp_path: Path) -> None:
    answers: list[Any] = [SearchError(FailureKind.UNAVAILABLE, "down"), [ImageHit("a", "u", RED), ImageHit("b")]]

    async def behave(query: Any) -> Answer:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    async def thrice(runtime: SearchRuntime) -> list[Observation]:
        return [await runtime.image_search(ImageQuery(RED.copy())) for _ in range(3)]

    backend = Backend(behave)
    runtime = SearchRuntime(backend, None, image_policy=CallPolicy(retries=0), cache=ResultStore(tmp_path / "cache"))
    first, second, third = asyncio.run(thrice(runtime))
    runtime.close()
    assert kind(first) is FailureKind.UNAVAILABLE
    assert not second.cached and third.cached and len(backend.queries) == 2
    assert [(hit.title, hit.url) for hit in third.hits] == [("a", "u"), ("b", None)]
    later = SearchRuntime(backend, None, cache=ResultStore(tmp_path / "cache"))
    assert all(observation.cached for observation in asyncio.run(thrice(later))) and len(backend.queries) == 2
    backend.fingerprint = "test-2"
    answers.append([])
    changed = SearchRuntime(backend, None, cache=ResultStore(tmp_path / "cache"))
    assert not asyncio.run(thrice(changed))[0].cached


def test_a_thumbnail_that_cannot_be_used_leaves_its_title() -> None:
    empty = Image.new("RGB", (0, 5))
    runtime = SearchRuntime(returning([ImageHit("a", "u", empty), ImageHit("b", None, RED.convert("P"))]), None)
    first, second = asyncio.run(runtime.image_search(ImageQuery(RED))).hits
    assert isinstance(first, ImageHit) and isinstance(second, ImageHit)
    assert (first.title, first.url, first.thumbnail) == ("a", "u", None)
    assert second.thumbnail is not None and second.thumbnail.mode == "RGB"


def test_every_call_is_recorded_once_and_the_log_is_drained() -> None:
    async def run(runtime: SearchRuntime) -> None:
        await asyncio.gather(*(runtime.text_search(query) for query in ["a", "a", "", "b"]))

    runtime = text_runtime(returning(HITS, 0.01))
    asyncio.run(run(runtime))
    records = runtime.drain_records()
    assert sorted(record.failure or "" for record in records) == ["", "", "", FailureKind.INVALID_QUERY]
    assert sum(record.coalesced for record in records) == 1
    assert all(record.seconds >= 0 and record.tool == ActionKind.TEXT_SEARCH for record in records)
    assert runtime.drain_records() == [] == runtime.records


class Connected(Backend):
    """A backend with a connection that belongs to an event loop."""

    def __init__(self, behave: Any) -> None:
        super().__init__(behave)
        self.loop: asyncio.AbstractEventLoop | None = None

    async def search(self, query: Any, k: int) -> Answer:
        self.loop = self.loop or asyncio.get_running_loop()
        assert self.loop is asyncio.get_running_loop()
        return await super().search(query, k)

    async def close(self) -> None:
        assert self.loop in (None, asyncio.get_running_loop())
        self.loop = None


async def _found(query: Any) -> Answer:
    await asyncio.sleep(0.01)
    return HITS


def test_one_runtime_serves_one_loop_after_another() -> None:
    runtime = text_runtime(backend := Connected(_found), max_concurrency=1)

    async def several() -> list[Observation]:
        try:
            return await asyncio.gather(*(runtime.text_search(str(number)) for number in range(4)))
        finally:
            await runtime.disconnect()

    for _ in range(2):
        assert [kind(observation) for observation in asyncio.run(several())] == [None] * 4
        assert backend.loop is None


def test_a_second_loop_is_refused_until_the_first_has_disconnected() -> None:
    runtime = text_runtime(Connected(_found))
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(runtime.text_search("a")).failure is None
        for begin in (lambda: runtime.text_search("b"), runtime.check, runtime.disconnect):
            with pytest.raises(RuntimeError, match=r"in use on another event loop: await disconnect\(\) there first"):
                second.run(begin())
        first.run(runtime.disconnect())
        assert second.run(runtime.text_search("b")).failure is None
        second.run(runtime.disconnect())


def test_a_check_leaves_no_connection_open_whatever_it_finds() -> None:
    class Refusing(Connected):
        async def check(self) -> None:
            await self.search("ready?", 1)
            raise SearchError(FailureKind.KEY_REFUSED, "the key is refused")

    runtime = text_runtime(backend := Refusing(_found))
    for _ in range(2):
        with pytest.raises(SearchLost, match="cannot be used: the key is refused"):
            asyncio.run(runtime.check())
        assert backend.loop is None


def test_disconnecting_ends_calls_in_flight() -> None:
    async def run() -> Observation:
        backend = returning(HITS, 60)
        runtime = text_runtime(backend)
        waiting = asyncio.ensure_future(runtime.text_search("a"))
        await begun(backend, 1)
        await runtime.disconnect()
        return await waiting

    assert kind(asyncio.run(run())) is FailureKind.UNAVAILABLE


def test_closing_ends_calls_in_flight_and_refuses_later_ones() -> None:
    async def run() -> list[Observation]:
        backend = returning(HITS, 60)
        runtime = text_runtime(backend)
        waiting = asyncio.ensure_future(runtime.text_search("a"))
        await begun(backend, 1)
        runtime.close()
        return [await waiting, await runtime.text_search("b")]

    start = time.monotonic()
    assert [kind(o) for o in asyncio.run(run())] == [FailureKind.UNAVAILABLE] * 2
    assert time.monotonic() - start < 2


def failing(kind: FailureKind, times: int) -> Backend:
    async def behave(query: Any) -> Answer:
        if len(backend.queries) <= times:
            raise SearchError(kind, "not now")
        return HITS[:1]

    backend = Backend(behave)
    return backend


def test_a_failure_that_may_pass_is_tried_again() -> None:
    backend = failing(FailureKind.RATE_LIMITED, times=2)
    observation = asyncio.run(text_runtime(backend, retries=2).text_search("who"))
    assert observation.failure is None and len(observation.hits) == 1
    assert len(backend.queries) == 3


def test_tries_end_with_the_number_or_with_the_time() -> None:
    backend = failing(FailureKind.UNAVAILABLE, times=99)
    observation = asyncio.run(text_runtime(backend, retries=1).text_search("who"))
    assert observation.failure is not None and observation.failure.kind is FailureKind.UNAVAILABLE
    assert len(backend.queries) == 2
    hurried = failing(FailureKind.UNAVAILABLE, times=99)
    observation = asyncio.run(text_runtime(hurried, retries=50, timeout_s=0.4).text_search("who"))
    assert observation.failure is not None and observation.seconds < 1.0
    assert len(hurried.queries) <= 4


def test_a_failure_that_stays_is_not_tried_again() -> None:
    backend = failing(FailureKind.NOT_CACHED, times=99)
    assert asyncio.run(text_runtime(backend, retries=2).text_search("who")).failure is not None
    assert len(backend.queries) == 1


def test_large_tool_images_are_brought_to_the_given_side() -> None:
    wide = Image.new("RGB", (600, 300), "red")
    backend = returning([ImageHit("wide", thumbnail=wide), ImageHit("small", thumbnail=RED)])
    runtime = SearchRuntime(backend, None, thumbnail_side=100)
    hits = asyncio.run(runtime.image_search(ImageQuery(RED))).hits
    assert [hit.thumbnail.size for hit in hits if isinstance(hit, ImageHit) and hit.thumbnail] == [(100, 50), (8, 8)]


def recorded(backend: Backend, path: Path, mode: Mode = Mode.LIVE) -> Observation:
    """One search through a runtime of its own, with the answers kept at `path`."""
    runtime = SearchRuntime(None, backend, cache=ResultStore(path), mode=mode)
    try:
        return asyncio.run(runtime.text_search("who"))
    finally:
        runtime.close()


def test_a_replay_asks_nothing_and_gives_the_recorded_answers(tmp_path: Path) -> None:
    backend = returning(HITS[:1])
    assert kind(recorded(backend, tmp_path / "cache", Mode.REPLAY)) is FailureKind.NOT_CACHED
    assert backend.queries == []
    first = recorded(backend, tmp_path / "cache")
    backend.behave = returning(HITS[1:2]).behave
    again = recorded(backend, tmp_path / "cache", Mode.REPLAY)
    assert again.cached and again.hits == first.hits and len(backend.queries) == 1


def test_a_recording_asks_anew_and_replaces_what_was_kept(tmp_path: Path) -> None:
    backend = returning(HITS[:1])
    recorded(backend, tmp_path / "cache")
    backend.behave = returning(HITS[1:2]).behave
    assert recorded(backend, tmp_path / "cache", Mode.RECORD).hits == tuple(HITS[1:2])
    assert recorded(backend, tmp_path / "cache", Mode.REPLAY).hits == tuple(HITS[1:2])
    assert len(backend.queries) == 2


@pytest.mark.parametrize("mode", [Mode.RECORD, Mode.REPLAY])
def test_recording_and_replaying_need_a_cache(mode: Mode) -> None:
    with pytest.raises(ValueError, match="needs a cache"):
        SearchRuntime(None, None, mode=mode)


def test_the_tries_of_a_call_are_told_and_counted_once_for_all_that_shared_it() -> None:
    backend = failing(FailureKind.UNAVAILABLE, times=1)
    runtime = text_runtime(backend)

    async def both() -> tuple[Observation, Observation]:
        return await asyncio.gather(runtime.text_search("who"), runtime.text_search("who"))

    observations = asyncio.run(both())
    assert [observation.tries for observation in observations] == [2, 2]
    assert sum(record.tries for record in runtime.drain_records()) == len(backend.queries) == 2


@pytest.mark.parametrize(
    ("image", "text", "name"),
    [
        (ImageService("http://127.0.0.1:9"), None, "image-service"),
        (None, Retriever("http://127.0.0.1:9/retrieve"), "retriever"),
    ],
)
def test_a_server_that_is_not_there_is_noticed_before_the_first_search(image: Any, text: Any, name: str) -> None:
    with pytest.raises(SearchLost, match=f"the search backend {name} cannot be used: .*not there"):
        asyncio.run(SearchRuntime(image, text).check())
