"""The readable text of web pages, made by processes that are killed when they are late.

A few workers (`page_worker.py`) are started when the first page comes and are used again. One that is late or dies is
replaced; its page is a failure.
"""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

from mmsearch_trl.core.boundaries import missing
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.web.fetch import Fetched
from mmsearch_trl.search.web.page_worker import job, receive, send


MAX_HTML = 1_000_000
"""Bytes of a page that are looked at."""

_STARTING_SECONDS = 30.0
_INHERITED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR")
"""Of the environment, what a worker gets: no key is among it."""


@dataclass(frozen=True, slots=True)
class PageText:
    title: str
    text: str


class PageReader:
    """Makes text of pages, a few at a time.

    Args:
        workers: Processes.
        timeout_s: Seconds that one page may take.

    Raises:
        UserError: the parser is not installed.
    """

    def __init__(self, *, workers: int = 2, timeout_s: float = 3.0) -> None:
        if find_spec("trafilatura") is None:
            raise missing("reading pages of the web", "web", why="No module named 'trafilatura'")
        self._timeout_s = timeout_s
        self._idle: list[_Worker] = []
        self._workers = workers
        self._slots = asyncio.Semaphore(workers)

    async def read(self, page: Fetched) -> PageText:
        """The text of a fetched page.

        Raises:
            SearchError: `TIMEOUT`, or `BAD_RESPONSE`: the page cannot be read or holds no text.
        """
        if page.content_type in ("text/plain", "text/markdown"):
            try:
                text = page.body.decode(page.charset or "utf-8", "replace")
            except LookupError:  # a character set that Python does not know
                text = page.body.decode("utf-8", "replace")
            found = PageText("", text)
        else:
            async with self._slots:
                found = await self._ask(job(page.body[:MAX_HTML], page.charset))
        if not found.text.strip():
            raise SearchError(FailureKind.BAD_RESPONSE, "the page holds no text")
        return found

    def close(self) -> None:
        """End the workers; a page under way is a failure. The next page, on whatever event loop, starts them again."""
        self._slots = asyncio.Semaphore(self._workers)
        while self._idle:
            self._idle.pop().kill()

    async def _ask(self, message: bytes) -> PageText:
        worker = self._idle.pop() if self._idle else await _start()
        whole = False
        try:
            answer = await asyncio.wait_for(call_blocking(worker.ask, message), self._timeout_s)
            whole = True
        except TimeoutError:
            raise SearchError(FailureKind.TIMEOUT, f"the page was not read within {self._timeout_s:g} s") from None
        except (EOFError, OSError):
            raise SearchError(FailureKind.BAD_RESPONSE, "the page is too much for its parser") from None
        finally:
            # A worker that is still busy would answer the next page with this one's text.
            if whole:
                self._idle.append(worker)
            else:
                worker.kill()
        values = json.loads(answer)
        if "error" in values:
            raise SearchError(FailureKind.BAD_RESPONSE, f"the page cannot be parsed: {values['error']}")
        return PageText(values["title"], values["text"])


class _Worker:
    """One process. Its methods block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmsearch_trl.search.web.page_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
        )

    def ask(self, message: bytes) -> bytes:
        assert self._process.stdin is not None and self._process.stdout is not None
        send(self._process.stdin, message)  # pyright: ignore[reportArgumentType]
        return receive(self._process.stdout)  # pyright: ignore[reportArgumentType]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, AttributeError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]


async def _start() -> _Worker:
    """A worker that has loaded its libraries: the first page must not pay for that with its own time."""
    worker = await call_blocking(_Worker)
    try:
        ready = await asyncio.wait_for(call_blocking(worker.ask, job(b"<p>ready</p>", None)), _STARTING_SECONDS)
        if "error" in (values := json.loads(ready)):
            raise OSError(values["error"])
    except BaseException as error:
        worker.kill()
        if isinstance(error, TimeoutError | EOFError | OSError):
            raise SearchError(FailureKind.UNAVAILABLE, "no process for reading pages could be started") from None
        raise
    return worker
