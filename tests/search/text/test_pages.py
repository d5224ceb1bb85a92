"""Search, read, summarise: order, replacement, what is kept."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.text.pages import MAX_PAGE_CHARS, PageSearch
from mmsearch_trl.search.web.address_rules import AddressRules
from mmsearch_trl.search.web.page_text import PageText


class Links:
    name, fingerprint = "links", "links-1"

    def __init__(self, count: int) -> None:
        self.asked: list[tuple[str, int]] = []
        self.count = count

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        self.asked.append((query, k))
        return [TextHit(f"link {i}", "snippet", url=f"http://pages.example/{i}") for i in range(self.count)]


class Reader:
    rules = AddressRules()

    def __init__(self, broken: Sequence[int] = (), slow: Sequence[int] = ()) -> None:
        self.fingerprint, self.broken, self.slow = "reader-1", broken, slow
        self.read_urls: list[str] = []
        self.cancelled = 0

    async def read(self, url: str) -> PageText:
        self.read_urls.append(url)
        number = int(url.rpartition("/")[2])
        try:
            await asyncio.sleep(0.05 if number in self.slow else 0.0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if number in self.broken:
            raise SearchError(FailureKind.TIMEOUT, f"page {number} is slow")
        return PageText(f"page {number}", f"text {number} " + "x" * 2 * MAX_PAGE_CHARS)

    async def close(self) -> None: ...


class Summariser:
    def __init__(self) -> None:
        self.fingerprint = "summariser-1"
        self.pages: list[str] = []

    async def summarise(self, question: str, page: str) -> str:
        self.pages.append(page)
        return f"{question} {page[:6]}"

    async def close(self) -> None: ...


def search(*parts: Any, k: int = 3, cache: ResultStore | None = None) -> list[TextHit]:
    return list(asyncio.run(PageSearch(*parts, cache=cache).search("who", k)))


def test_the_best_pages_are_summarised_in_their_order() -> None:
    links, reader, summariser = Links(9), Reader(slow=[0]), Summariser()
    hits = search(links, reader, summariser)
    assert hits == [TextHit(f"page {i}", f"who text {i}", url=f"http://pages.example/{i}") for i in range(3)]
    assert len(reader.read_urls) == 3, "no page is read that is not needed"
    assert {len(page) for page in summariser.pages} == {MAX_PAGE_CHARS}


def test_links_may_come_from_a_plain_function() -> None:
    class Plain:
        name, fingerprint = "plain", "1"

        def search(self, query: str, k: int) -> Sequence[TextHit]:
            return [TextHit("link", "", url="http://pages.example/7")]

    assert [hit.title for hit in search(Plain(), Reader(), Summariser())] == ["page 7"]


def test_a_page_that_cannot_be_read_is_replaced_by_the_next() -> None:
    hits = search(Links(9), Reader(broken=[0, 2, 4]), Summariser())
    assert [hit.title for hit in hits] == ["page 1", "page 3", "page 5"]


@pytest.mark.parametrize("error", [LookupError, UnicodeError, RecursionError, KeyError, RuntimeError])
def test_no_exception_of_a_page_ends_the_search(error: type[Exception]) -> None:
    class Defective(Reader):
        async def read(self, url: str) -> PageText:
            if url.endswith(("/0", "/3")):
                raise error("http://secret.example/?key=sesame")
            return await super().read(url)

    hits = search(Links(9), Defective(), Summariser())
    assert [hit.title for hit in hits] == ["page 1", "page 2", "page 4"]
    with pytest.raises(SearchError, match=f"the last: reading a page raised {error.__name__}") as caught:
        search(Links(1), Defective(), Summariser())
    assert "sesame" not in str(caught.value)


def test_a_host_is_denied_whatever_was_read_from_it_before(tmp_path: Path) -> None:
    cache = ResultStore(tmp_path / "cache.sqlite")
    assert search(Links(1), Reader(), Summariser(), cache=cache)
    denied = Reader()
    denied.rules = AddressRules(["pages.example"])
    with pytest.raises(SearchError, match="denied_hosts"):
        search(Links(1), denied, Summariser(), cache=cache)
    assert denied.read_urls == []
    parts = (Links(1), Reader(), Summariser())
    assert PageSearch(*parts).fingerprint != PageSearch(parts[0], denied, parts[2]).fingerprint


def test_a_key_that_is_refused_is_told_whatever_else_went_wrong() -> None:
    class Refused(Reader):
        async def read(self, url: str) -> PageText:
            kind = FailureKind.KEY_REFUSED if url.endswith("/0") else FailureKind.TIMEOUT
            raise SearchError(kind, "no")

    with pytest.raises(SearchError) as caught:
        search(Links(4), Refused(), Summariser())
    assert caught.value.failure.kind is FailureKind.KEY_REFUSED


def test_a_page_that_takes_too_long_is_replaced_too() -> None:
    search_ = PageSearch(Links(9), Reader(slow=[0, 1]), Summariser(), page_timeout_s=0.02)
    hits = asyncio.run(search_.search("who", 3))
    assert [hit.title for hit in hits] == ["page 2", "page 3", "page 4"]


def test_there_may_be_fewer_pages_than_wanted() -> None:
    assert [hit.title for hit in search(Links(4), Reader(broken=[0, 1]), Summariser())] == ["page 2", "page 3"]
    assert search(Links(0), Reader(), Summariser()) == []


def test_no_page_at_all_is_a_failure_that_says_why() -> None:
    with pytest.raises(SearchError, match="none of 2 pages could be read; the last: page 1 is slow"):
        search(Links(2), Reader(broken=[0, 1]), Summariser())


def test_addresses_texts_and_summaries_are_kept_apart(tmp_path: Path) -> None:
    cache = ResultStore(tmp_path / "stages.sqlite")
    links, reader, summariser = Links(5), Reader(), Summariser()
    first = search(links, reader, summariser, cache=cache)
    assert search(links, reader, summariser, cache=cache) == first
    assert (len(links.asked), len(reader.read_urls), len(summariser.pages)) == (1, 3, 3)
    summariser.fingerprint = "summariser-2"
    search(links, reader, summariser, cache=cache)
    assert (len(links.asked), len(reader.read_urls), len(summariser.pages)) == (1, 3, 6)
    reader.fingerprint = "reader-2"
    search(links, reader, summariser, cache=cache)
    assert (len(links.asked), len(reader.read_urls)) == (1, 6)


def test_a_search_that_is_given_up_reads_no_further() -> None:
    reader = Reader(slow=range(9))

    async def run() -> None:
        task = asyncio.ensure_future(PageSearch(Links(9), reader, Summariser()).search("who", 3))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    asyncio.run(run())
    assert reader.cancelled == len(reader.read_urls) == 3
