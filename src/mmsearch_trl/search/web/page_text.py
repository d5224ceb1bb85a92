"""The readable text of web pages, made by processes that are killed when they are late."""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec

from mmsearch_trl.core.boundaries import missing
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.worker_pool import WorkerPool
from mmsearch_trl.search.web.fetch import Fetched


MAX_HTML = 1_000_000
"""Bytes of a page that are looked at."""
PROCESSES = min(4, os.cpu_count() or 2)
MEMORY = 1 << 30
"""Bytes of address space of one process."""

_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class PageText:
    title: str
    text: str


class PageReader:
    """Makes text of pages, a few at a time.

    Args:
        processes: That work at a time.
        timeout_s: Seconds that one page may take.

    Raises:
        UserError: the parser is not installed.
    """

    def __init__(self, *, processes: int = PROCESSES, timeout_s: float = 3.0) -> None:
        if lacking := next((name for name in ("trafilatura", "webencodings") if find_spec(name) is None), None):
            raise missing("reading pages of the web", "web", why=f"No module named {lacking!r}")
        from mmsearch_trl.search.web.page_worker import job, read  # its character sets may not be installed

        self._job = job
        self._timeout_s = timeout_s
        function = f"{read.__module__}:{read.__name__}"
        first = job(b"<p>ready</p>", "utf-8", html=True)
        self._pool = WorkerPool(function, first, processes=processes, memory=MEMORY)

    async def read(self, page: Fetched) -> PageText:
        """The text of a fetched page.

        Raises:
            SearchError: `TIMEOUT`, or `BAD_RESPONSE`: the page cannot be read or holds no text.
        """
        job = self._job(page.body[:MAX_HTML], page.charset, html=page.content_type in _HTML)
        try:
            values = json.loads(await self._pool.ask(job, self._timeout_s))
        except TimeoutError:
            raise SearchError(FailureKind.TIMEOUT, f"the page was not read within {self._timeout_s:g} s") from None
        except EOFError:
            raise SearchError(FailureKind.BAD_RESPONSE, "the page is too much for its parser") from None
        if "error" in values:
            raise SearchError(FailureKind.BAD_RESPONSE, f"the page cannot be parsed: {values['error']}")
        if not values["text"].strip():
            raise SearchError(FailureKind.BAD_RESPONSE, "the page holds no text")
        return PageText(values["title"], values["text"])

    def close(self) -> None:
        """End the processes; a page under way is a failure. The next page starts them again."""
        self._pool.close()
