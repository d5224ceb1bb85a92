"""What searches cost: every byte and every paid try is counted once, against the search that caused it."""

import asyncio
import gzip
import io
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Answer, Site, response, serving
from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.calls.budget import Budget
from mmsearch_trl.search.calls.record import CallRecord
from mmsearch_trl.search.calls.totals import SearchTotals, summary_lines, totals_of
from mmsearch_trl.search.image.serpapi_lens import SerpApiLens
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.pages import PageSearch
from mmsearch_trl.search.text.readers import WebReader
from mmsearch_trl.search.text.retriever import Retriever
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogle
from mmsearch_trl.search.text.summarisers import Excerpt
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.page_text import PageReader
from mmsearch_trl.search.web.serpapi import KEY_VARIABLE, SerpApi


KEY = "sesame-open"
IMAGE_PRICE, TEXT_PRICE = 0.015, 0.01
NOISE = Image.effect_noise((60, 40), 90).convert("RGB")
DOCUMENT = json.dumps({"result": [[{"document": {"id": "1", "contents": "title\nwords"}, "score": 1.0}]]}).encode()


def body(content: Any) -> bytes:
    return json.dumps(content).encode()


def told(content: bytes, **headers: str) -> bytes:
    return response(content, Content_Type="application/json", **headers)


def png() -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, "PNG")
    return buffer.getvalue()


def fetcher() -> Fetcher:
    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    return Fetcher(allowed=lambda address: address == "127.0.0.1", lookup=here, ports=None, timeout_s=2.0)


def searching(
    answers: Any, build: Callable[[Site], SearchRuntime], work: Callable[[SearchRuntime], Awaitable[Any]]
) -> tuple[Any, list[CallRecord], SearchRuntime]:
    """What `work` comes to with searches of a server on loopback, and the log of these."""

    async def run() -> tuple[Any, list[CallRecord], SearchRuntime]:
        open_answers = dict(answers) if isinstance(answers, dict) else answers
        async with serving(open_answers) as site:
            if isinstance(open_answers, dict):
                for path, answer in open_answers.items():
                    if isinstance(answer, bytes):
                        open_answers[path] = answer.replace(b"PORT_", f"{site.port:05d}".encode())
            runtime = build(site)
            try:
                return await work(runtime), runtime.drain_records(), runtime
            finally:
                await runtime.disconnect()
                runtime.close()

    return asyncio.run(run())


def retrieving(answer: Answer, work: Callable[[SearchRuntime], Awaitable[Any]], **options: Any) -> Any:
    policy = CallPolicy(**options.pop("policy", {}))

    def build(site: Site) -> SearchRuntime:
        return SearchRuntime(None, Retriever(f"http://127.0.0.1:{site.port}"), text_policy=policy, **options)

    return searching(answer, build, work)


def test_the_bytes_of_a_body_are_counted() -> None:
    observation, [record], runtime = retrieving(told(DOCUMENT), lambda runtime: runtime.text_search("who"))
    assert observation.hits and observation.bytes == record.bytes == len(DOCUMENT)
    assert runtime.totals[ActionKind.TEXT_SEARCH] == SearchTotals(calls=1, tries=1, bytes=len(DOCUMENT))
    assert runtime.totals[ActionKind.IMAGE_SEARCH] == SearchTotals()


def test_the_bodies_of_failed_tries_are_counted_too() -> None:
    refusals = iter([response(b"x" * 1000, status="503 Busy"), response(b"y" * 10, status="500 Oops")])

    async def answer(write: Any) -> None:
        await write(next(refusals, told(DOCUMENT)))

    observation, [record], _ = retrieving(answer, lambda runtime: runtime.text_search("who"))
    assert observation.failure is None and observation.tries == record.tries == 3
    assert record.bytes == 1010 + len(DOCUMENT)


def test_a_failed_search_has_cost_what_it_received() -> None:
    observation, [record], _ = retrieving(
        response(b"x" * 1000, status="503 Busy"), lambda runtime: runtime.text_search("who"), policy={"retries": 1}
    )
    assert observation.failure and observation.failure.kind is FailureKind.UNAVAILABLE
    assert (record.tries, record.bytes) == (2, 2000)


def test_kept_and_shared_answers_cost_nothing(tmp_path: Path) -> None:
    async def work(runtime: SearchRuntime) -> list[Observation]:
        together = await asyncio.gather(*(runtime.text_search("who") for _ in range(8)))
        return [*together, await runtime.text_search("who"), await runtime.text_search("")]

    _, records, runtime = retrieving(told(DOCUMENT), work, cache=ResultStore(tmp_path / "answers.sqlite"))
    assert sum(record.bytes for record in records) == len(DOCUMENT)
    assert [record.bytes for record in records if record.cached or record.coalesced or record.failure] == [0] * 9
    total = runtime.totals[ActionKind.TEXT_SEARCH]
    assert total == totals_of(records)[ActionKind.TEXT_SEARCH]
    assert (total.calls, total.cached, total.coalesced, total.failed, total.tries) == (10, 1, 7, 1, 1)


def test_searches_at_the_same_time_do_not_count_each_other_s_bytes() -> None:
    sizes = {f"q{number}": 1000 * number for number in range(1, 20)}

    class Sized(Retriever):
        async def search(self, query: str, k: int) -> Any:
            await self._service.get(f"/{query}")
            await asyncio.sleep(0.01)
            await asyncio.gather(*(self._service.get(f"/{query}") for _ in range(2)))
            return []

    answers = {f"/{query}": told(b'"' + b"x" * (size - 2) + b'"') for query, size in sizes.items()}

    async def work(runtime: SearchRuntime) -> list[Observation]:
        return await asyncio.gather(*(runtime.text_search(query) for query in sizes))

    observations, _, _ = searching(
        answers, lambda site: SearchRuntime(None, Sized(f"http://127.0.0.1:{site.port}")), work
    )
    assert [observation.bytes for observation in observations] == [3 * size for size in sizes.values()]


def test_a_search_that_everybody_leaves_is_paid_for_all_the_same() -> None:
    class Paid(Retriever):
        paid = True

    async def slow(write: Any) -> None:
        head, _, rest = told(DOCUMENT).partition(b"\r\n\r\n")
        await write(head + b"\r\n\r\n" + rest[:10])
        await asyncio.sleep(60)

    async def work(runtime: SearchRuntime) -> None:
        callers = [asyncio.ensure_future(runtime.text_search("who")) for _ in range(2)]
        await asyncio.sleep(0.3)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        await asyncio.sleep(0.05)

    def build(site: Site) -> SearchRuntime:
        return SearchRuntime(None, Paid(f"http://127.0.0.1:{site.port}"), text_price=TEXT_PRICE)

    _, [record], _ = searching(slow, build, work)
    assert (record.tries, record.paid, record.bytes, record.price) == (1, True, 10, TEXT_PRICE)


def test_who_stays_bears_the_cost_of_a_search_that_another_began() -> None:
    async def slow(write: Any) -> None:
        await asyncio.sleep(0.2)
        await write(told(DOCUMENT))

    async def work(runtime: SearchRuntime) -> Observation:
        first = asyncio.ensure_future(runtime.text_search("who"))
        second = asyncio.ensure_future(runtime.text_search("who"))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    observation, [record], _ = retrieving(slow, work)
    assert observation.coalesced and (record.tries, record.bytes) == (1, len(DOCUMENT))


def paid_answers() -> dict[str, bytes]:
    link = "http://pages.example:PORT_/page"
    return {
        "/image": told(body({"image_id": "abc"})),
        "/search.json": told(
            body(
                {
                    "search_metadata": {"status": "Success"},
                    "visual_matches": [{"title": "seen", "thumbnail": "http://pages.example:PORT_/picture"}],
                    "organic_results": [{"title": "page", "snippet": "words", "link": link}],
                }
            )
        ),
        "/picture": response(png(), Content_Type="image/png"),
        "/page": response(gzip.compress(b"<p>Some words of a page. " * 400), Content_Encoding="gzip"),
    }


def size_of(answer: bytes) -> int:
    return len(answer.partition(b"\r\n\r\n")[2])


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def paid_runtime(site: Site, **options: Any) -> SearchRuntime:
    api, web = SerpApi(f"http://127.0.0.1:{site.port}"), fetcher()
    pages = PageSearch(SerpApiGoogle(api), WebReader(web, PageReader(processes=1)), Excerpt())
    return SearchRuntime(SerpApiLens(api, web), pages, **options)


@pytest.mark.usefixtures("keyed")
def test_all_that_a_search_fetches_counts_and_its_price_is_calls_by_the_price_of_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = paid_answers()
    sizes = {path: size_of(answer) for path, answer in answers.items()}

    async def work(runtime: SearchRuntime) -> list[Observation]:
        return [
            await runtime.image_search(ImageQuery(NOISE)),
            await runtime.text_search("words of a page"),
            await runtime.text_search("page"),
        ]

    [seen, read, _], records, runtime = searching(
        answers, lambda site: paid_runtime(site, image_price=IMAGE_PRICE, text_price=TEXT_PRICE), work
    )
    assert isinstance(seen.hits[0], ImageHit) and seen.hits[0].thumbnail is not None
    assert isinstance(read.hits[0], TextHit) and "Some words" in read.hits[0].text
    assert seen.bytes == sizes["/image"] + sizes["/search.json"] + sizes["/picture"]
    assert read.bytes == sizes["/search.json"] + sizes["/page"], "compressed, as it came"
    assert [record.price for record in records] == [IMAGE_PRICE, TEXT_PRICE, TEXT_PRICE]
    assert runtime.totals[ActionKind.TEXT_SEARCH].price == pytest.approx(2 * TEXT_PRICE)
    lines = summary_lines(runtime.totals)
    assert "about $0.01" in lines[0] and "2 tries paid: about $0.02" in lines[1]
    assert KEY not in repr((lines, records, seen, read)) + caplog.text


@pytest.mark.usefixtures("keyed")
def test_no_more_is_spent_than_the_budget_allows_and_a_price_that_is_not_known_is_not_made_up() -> None:
    async def work(runtime: SearchRuntime) -> list[Observation]:
        return [await runtime.text_search(f"words {number}") for number in range(5)]

    found, _, runtime = searching(paid_answers(), lambda site: paid_runtime(site, budget=Budget(2)), work)
    assert [observation.failure is None for observation in found] == [True, True, False, False, False]
    assert runtime.totals[ActionKind.TEXT_SEARCH].paid == 2 and runtime.totals[ActionKind.TEXT_SEARCH].price == 0
    [line] = summary_lines(runtime.totals)
    assert "price unknown (search.text.price_per_call is not set)" in line and "$" not in line


def test_what_is_free_has_no_price_whatever_the_recipe_says() -> None:
    _, [record], runtime = retrieving(told(DOCUMENT), lambda runtime: runtime.text_search("who"), text_price=9.0)
    assert record.price == 0 and not record.paid
    [line] = summary_lines(runtime.totals)
    assert line == "text search: 1 calls (0 cached, 0 shared, 0 failed), 1 tries, 0.0 MB received"
