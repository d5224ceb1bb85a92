"""Two ways to the text of a page: fetched and parsed here, or by Jina Reader."""

import os
from collections.abc import Collection
from typing import Protocol

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.web.address_rules import AddressRules
from mmsearch_trl.search.web.fetch import TEXT_TYPES, Fetcher
from mmsearch_trl.search.web.page_text import PageReader, PageText
from mmsearch_trl.search.web.service import Service


JINA_URL = "https://r.jina.ai"
JINA_KEY_VARIABLE = "JINA_API_KEY"


class Reader(Protocol):
    """Reads pages. `fingerprint` changes whenever the same address could give another text for a reason of its own;
    `rules` say which addresses are not read, whatever was read from them before."""

    fingerprint: str
    rules: AddressRules

    async def read(self, url: str) -> PageText:
        """The text of the page at an address.

        Raises:
            SearchError: it cannot be had.
        """
        ...

    async def close(self) -> None: ...


class WebReader:
    """Fetches pages and parses them on this machine; needs no key."""

    fingerprint = "web-1"

    def __init__(self, fetcher: Fetcher, pages: PageReader) -> None:
        self._fetcher = fetcher
        self._pages = pages
        self.rules = fetcher.rules

    async def read(self, url: str) -> PageText:
        return await self._pages.read(await self._fetcher.fetch(url, TEXT_TYPES))

    async def close(self) -> None:
        self._pages.close()
        await self._fetcher.close()


class JinaReader:
    """Jina Reader, which renders pages as well; its key is optional and read from the environment.

    The service looks names up itself and follows redirects: what is refused here is what an address tells, the one at
    which a page was found in the end included.

    Args:
        url: Of the service, which can be one's own.
        denied_hosts: Hosts whose pages are not read, as `AddressRules` has them.

    Raises:
        UserError: an entry of `denied_hosts` names no host.
    """

    def __init__(self, url: str = JINA_URL, *, denied_hosts: Collection[str] = ()) -> None:
        self.rules = AddressRules(denied_hosts)
        self.fingerprint = f"jina-1 {url}"
        headers = {"Accept": "application/json", "X-Retain-Images": "none", "X-Md-Link-Style": "discarded", "DNT": "1"}
        self._service = Service(url, token=os.environ.get(JINA_KEY_VARIABLE), headers=headers)

    async def read(self, url: str) -> PageText:
        self.rules.check(url)
        # Posted: in a path, what follows a # would be lost.
        answer = await self._service.post("/", json={"url": url})
        page = answer.get("data") if isinstance(answer, dict) else None
        page = page if isinstance(page, dict) else {}
        title, content = page.get("title"), page.get("content")
        if not isinstance(content, str) or not content.strip():
            raise SearchError(FailureKind.BAD_RESPONSE, "the reader found no text")
        if isinstance(found := page.get("url"), str) and "://" in found:  # after redirects
            self.rules.check(found)
        return PageText(title if isinstance(title, str) else "", content)

    async def close(self) -> None:
        await self._service.close()
