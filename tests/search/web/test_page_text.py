"""Reading pages in processes of their own."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psutil
import pytest

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.web import page_text
from mmsearch_trl.search.web.fetch import Fetched
from mmsearch_trl.search.web.page_text import PageReader, PageText


ResultT = TypeVar("ResultT")

ARTICLE = (
    "The Velm tower was built in 1880 by the town of Harwick. It is forty metres high and made of grey stone. "
    "Its bell was cast in Oakham and rings at noon, as the people of the valley can hear to this day."
)
HTML = (
    "<html><head><title>Velm tower</title></head><body><nav><a href='/a'>Home</a><a href='/b'>Log in</a></nav>"
    f"<article><h1>Velm tower</h1><p>{ARTICLE}</p><p>{ARTICLE[::-1]}</p></article><script>alert('no')</script>"
    "<footer>Copyright notice</footer></body></html>"
)


def page(body: str | bytes, content_type: str = "text/html", charset: str | None = "utf-8") -> Fetched:
    return Fetched("http://pages.example/", content_type, charset, body if isinstance(body, bytes) else body.encode())


def reading(work: Callable[[PageReader], Awaitable[ResultT]], **options: float) -> ResultT:
    """Run `work` with a reader, and see that no process of its is left."""

    async def run() -> ResultT:
        reader = PageReader(**options)  # pyright: ignore[reportArgumentType]
        try:
            return await work(reader)
        finally:
            reader.close()

    before = set(_children())
    result = asyncio.run(run())
    assert set(_children()) <= before
    return result


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


async def outcome(reader: PageReader, given: Fetched) -> PageText | FailureKind:
    try:
        return await reader.read(given)
    except SearchError as error:
        return error.failure.kind


def test_a_page_is_its_article_without_what_stands_around_it() -> None:
    async def work(reader: PageReader) -> None:
        found = await reader.read(page(HTML))
        assert found.title == "Velm tower" and ARTICLE in found.text
        assert not any(word in found.text for word in ("Log in", "alert", "Copyright"))

    reading(work)


@pytest.mark.parametrize("charset", ["latin-1", "cp1252", "utf-16", "no-such-charset", None])
def test_a_page_is_read_in_the_character_set_that_the_server_names(charset: str | None) -> None:
    text = HTML.replace("grey stone", "grés blême")
    encoded = text.encode(charset if charset and charset != "no-such-charset" else "utf-8")
    found = reading(lambda reader: reader.read(page(encoded, charset=charset)))
    assert "grés blême" in found.text


def test_plain_text_needs_no_parser() -> None:
    found = reading(lambda reader: reader.read(page("words <b>as</b> they are", "text/plain", charset="nonsense")))
    assert found == PageText("", "words <b>as</b> they are")


@pytest.mark.parametrize(
    "body", [b"", b"<html></html>", b"\x00" * 5000, b"<" * 5000, b"\xff\xfe" * 999, b"<!--" * 999]
)
def test_a_page_without_text_is_a_bad_response(body: bytes) -> None:
    assert reading(lambda reader: outcome(reader, page(body, charset=None))) is FailureKind.BAD_RESPONSE


def test_a_page_that_burns_time_costs_itself_only() -> None:
    async def work(reader: PageReader) -> None:
        slow = page("<table>" + "<tr><td>cell</td><td><p>word " * 30_000)
        start = time.monotonic()
        first = await asyncio.gather(outcome(reader, slow), outcome(reader, page(HTML)))
        assert first[0] is FailureKind.TIMEOUT and isinstance(first[1], PageText), first
        assert time.monotonic() - start < 20
        assert isinstance(await outcome(reader, page(HTML)), PageText), "a new worker has taken its place"

    reading(work, workers=2, timeout_s=1.0)


def test_a_worker_that_dies_is_replaced() -> None:
    async def work(reader: PageReader) -> None:
        before = set(_children())
        assert isinstance(await outcome(reader, page(HTML)), PageText)
        [worker] = set(_children()) - before
        os.kill(worker, 9)
        assert await outcome(reader, page(HTML)) is FailureKind.BAD_RESPONSE
        assert isinstance(await outcome(reader, page(HTML)), PageText)

    reading(work)


def test_a_cancelled_read_leaves_no_worker_busy() -> None:
    async def work(reader: PageReader) -> None:
        slow = page("<table>" + "<tr><td>cell</td><td><p>word " * 30_000)
        task = asyncio.ensure_future(reader.read(slow))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
        assert isinstance(await outcome(reader, page(HTML)), PageText)

    reading(work, workers=1, timeout_s=30.0)


def test_a_worker_has_no_key_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", "sesame")

    async def work(reader: PageReader) -> None:
        before = set(_children())
        await reader.read(page(HTML))
        [worker] = set(_children()) - before
        assert "sesame" not in str(psutil.Process(worker).environ())

    reading(work)


def test_workers_take_no_more_memory_than_they_may() -> None:
    from mmsearch_trl.search.web import page_worker

    assert page_worker._MEMORY <= 1 << 30

    async def work(reader: PageReader) -> None:
        before = set(_children())
        await reader.read(page(HTML))
        [worker] = set(_children()) - before
        assert psutil.Process(worker).rlimit(psutil.RLIMIT_AS) == (page_worker._MEMORY, page_worker._MEMORY)

    reading(work)


def test_long_pages_are_cut() -> None:
    body = HTML.encode() + b"<p>" + b"x" * page_text.MAX_HTML
    assert isinstance(reading(lambda reader: outcome(reader, page(body))), PageText)
