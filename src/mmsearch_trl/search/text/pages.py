"""Text search as MMSearch-R1 has it: search for addresses, read the pages, summarise each for the question.

A page that cannot be read or summarised is replaced by the next address until there are k, no address is left, or the
time of the search is over: then those that were read are handed back. What each stage gave is cached apart, so that
another summariser reads the same pages and pays for no search.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.failure_monitor import LASTING
from mmsearch_trl.core.observation import Failure, FailureKind, TextHit
from mmsearch_trl.search.calls.backend import Answer, SearchBackend
from mmsearch_trl.search.calls.backend_client import call, is_paid
from mmsearch_trl.search.calls.cost import note_cut
from mmsearch_trl.search.calls.deadline import seconds_for_parts
from mmsearch_trl.search.calls.section import AnswerStore, Shared, TextConfig, named
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.calls.validation import text_hits
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.ddgs_search import DdgsSearch
from mmsearch_trl.search.text.readers import JinaReader, Reader, WebReader
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogle
from mmsearch_trl.search.text.summarisers import ChatSummariser, Excerpt, Summariser
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.serpapi import SerpApi
from mmsearch_trl.search.web.service import check_url


logger = logging.getLogger(__name__)

MAX_PAGE_CHARS = 30_000
"""Of a page, what a summariser gets to see (MMSearch-R1, appendix C)."""

_ADDRESSES_PER_HIT = 3
_MOST_UNREAD = 256


@dataclass(frozen=True, kw_only=True)
class PagesConfig(TextConfig):
    """`search.text` with `backend: pages`."""

    backend: Literal["pages"] = field(
        default="pages",
        metadata={"help": "As MMSearch-R1 has it: pages are searched for, read, and summarised for the question."},
    )
    links: Literal["serpapi", "ddgs"] = field(
        metadata={"help": "What searches for pages: serpapi (paid; its key is in SERPAPI_API_KEY), or ddgs."},
    )
    reader: Literal["web", "jina"] = field(
        default="web",
        metadata={"help": "What reads pages: web, this machine; jina, Jina Reader (its key is in JINA_API_KEY)."},
    )
    summariser_url: str | None = field(
        default=None,
        metadata={
            "help": "Address of an OpenAI-compatible endpoint that summarises pages; default: the sentences that fit "
            "the query best. A key that it wants is in OPENAI_API_KEY."
        },
    )
    summariser_model: str | None = field(default=None, metadata={"help": "The model there."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.summariser_url is None) != (self.summariser_model is None):
            raise UserError(
                "search.text.summariser_url and search.text.summariser_model go together: set both, or none"
            )
        if self.summariser_url is not None:
            with named("search.text.summariser_url"):
                check_url(self.summariser_url, "http://127.0.0.1:8000/v1")

    def open(self, shared: Shared) -> "PageSearch":
        links: Any = SerpApiGoogle(SerpApi()) if self.links == "serpapi" else DdgsSearch()
        summariser = Excerpt()
        if self.summariser_url is not None and self.summariser_model is not None:
            summariser = ChatSummariser(self.summariser_url, self.summariser_model)
        return PageSearch(links, self._reader(shared), summariser, cache=shared.store)

    def _reader(self, shared: Shared) -> Reader:
        if self.reader == "jina":
            return JinaReader(denied_hosts=shared.denied_hosts)
        from mmsearch_trl.search.web.page_text import PageReader  # its parser may not be installed

        return WebReader(Fetcher(denied_hosts=shared.denied_hosts), PageReader())


class PageSearch:
    """A `SearchBackend[str]` that answers with summaries of pages.

    Args:
        links: Finds addresses.
        cache: Of addresses, texts and summaries; None for none.
        page_timeout_s: Seconds that one page may take, read and summarised; the next address takes its place.
    """

    name = "pages"

    def __init__(
        self,
        links: SearchBackend[str],
        reader: Reader,
        summariser: Summariser,
        *,
        cache: AnswerStore | None = None,
        page_timeout_s: float = 6.0,
    ) -> None:
        self._links = links
        self._reader = reader
        self._summariser = summariser
        self._cache = cache
        self._page_timeout_s = page_timeout_s
        self._unread: dict[str, list[TextHit]] = {}
        """Addresses of searches of which no page was read, for their next try: it need not pay for them again."""
        self.paid = is_paid(links)
        parts = (links.fingerprint, reader.fingerprint, summariser.fingerprint)
        # An answer that was cached before a host was denied may hold its pages.
        self.fingerprint = digest_of(self.name, *parts, *reader.rules.denied)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """Summaries of the best pages that could be read, best first.

        Raises:
            SearchError: no address could be found, or no page of those found could be read: `UNAVAILABLE`, or that a
                key is refused or a quota spent.
        """
        count = k * _ADDRESSES_PER_HIT
        key = digest_of("addresses", self._links.fingerprint, query, str(count))
        links = self._unread.pop(key, None)
        if links is None:
            links = [link for link in await self._cached(key, lambda: call(self._links, query, count)) if link.url]
        found: list[TextHit] = []
        try:
            found, failure = await self._summaries(query, links, k)
        finally:
            if links and not found:
                self._unread[key] = links
                while len(self._unread) > _MOST_UNREAD:
                    del self._unread[next(iter(self._unread))]
        if links and not found:
            kind = failure.kind if failure.kind in LASTING else FailureKind.UNAVAILABLE
            raise SearchError(kind, f"none of {len(links)} pages could be read; the last: {failure.message}")
        return found

    async def check(self) -> None:
        """See that addresses can be searched for, where the backend can tell."""
        if (check := getattr(self._links, "check", None)) is not None:
            await check()

    async def close(self) -> None:
        for part in (self._links, self._reader, self._summariser):
            close = getattr(part, "close", None)
            if close is not None:
                await close()

    async def _summaries(self, query: str, links: Sequence[TextHit], k: int) -> tuple[list[TextHit], Failure]:
        """The first `k` that come to something in time, in the order of the links, and the last or lasting failure."""
        waiting, failure = list(enumerate(links)), Failure(FailureKind.TIMEOUT, "no time was left")
        found: dict[int, TextHit] = {}
        running: dict[asyncio.Task[TextHit | Failure], int] = {}
        try:
            while running or (waiting and len(found) < k):
                # As many at a time as are still wanted: pages beyond would be read for nothing.
                while waiting and len(running) + len(found) < k:
                    rank, link = waiting.pop(0)
                    running[asyncio.create_task(self._in_time(query, link))] = rank
                seconds = seconds_for_parts()
                done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    note_cut()
                    break
                for task in sorted(done, key=running.__getitem__):
                    rank, outcome = running.pop(task), task.result()
                    if isinstance(outcome, Failure):
                        failure = failure if failure.kind in LASTING else outcome
                    else:
                        found[rank] = outcome
        finally:
            for task in running:
                task.cancel()
        return [found[rank] for rank in sorted(found)], failure

    async def _in_time(self, query: str, link: TextHit) -> TextHit | Failure:
        """Whatever goes wrong costs one page, not the search."""
        try:
            async with asyncio.timeout(self._page_timeout_s):
                return await self._summary(query, link)
        except TimeoutError:
            return Failure(FailureKind.TIMEOUT, f"a page took more than {self._page_timeout_s:g} s")
        except SearchError as error:
            return error.failure
        except Exception as error:  # only the type is told: the text may hold a key or a page
            logger.warning("reading a page raised %s", type(error).__name__)
            return Failure(FailureKind.UNAVAILABLE, f"reading a page raised {type(error).__name__}")

    async def _summary(self, query: str, link: TextHit) -> TextHit:
        url = link.url or ""
        self._reader.rules.check(url)  # before the cache, which may hold a page from before its host was denied

        async def read() -> Sequence[TextHit]:
            page = await self._reader.read(url)
            return [TextHit(title=page.title or link.title, text=page.text[:MAX_PAGE_CHARS], url=url)]

        [page] = await self._cached(digest_of("page", self._reader.fingerprint, url), read)

        async def summarise() -> Sequence[TextHit]:
            summary = await self._summariser.summarise(query, page.text)
            return [TextHit(title=page.title, text=summary, url=url)]

        key = digest_of("summary", self._summariser.fingerprint, query, page.text)
        [summary] = await self._cached(key, summarise)
        return summary

    async def _cached(self, key: str, make: Callable[[], Awaitable[Answer]]) -> list[TextHit]:
        """What a stage gave before, or gives now."""
        if self._cache is not None and (cached := await call_blocking(self._cache.get, key)) is not None:
            with suppress(SearchError):  # hits of another kind: nobody has put them there for this
                return text_hits(cached)
        hits = text_hits(await make())
        if self._cache is not None:
            await call_blocking(self._cache.put, key, hits)
        return hits
