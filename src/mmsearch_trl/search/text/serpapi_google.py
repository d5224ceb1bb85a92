"""Text search by Google, through SerpApi: titles and snippets, or addresses for `pages.py` to read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.calls.section import Shared, TextConfig
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.web.serpapi import SerpApi, rows, text


@dataclass(frozen=True, kw_only=True)
class SerpApiGoogleConfig(TextConfig):
    """`search.text` with `backend: serpapi`."""

    backend: Literal["serpapi"] = field(
        default="serpapi",
        metadata={"help": "Google's titles and snippets through SerpApi. Paid; the key is in SERPAPI_API_KEY."},
    )

    def open(self, shared: Shared) -> "SerpApiGoogle":
        return SerpApiGoogle(SerpApi())


class SerpApiGoogle:
    """A `SearchBackend[str]`.

    Args:
        country: Of the searcher, two letters.
        language: Of the results, two letters.
    """

    name = "serpapi-google"
    paid = True

    def __init__(self, api: SerpApi, *, country: str = "us", language: str = "en") -> None:
        self._api = api
        self._where = {"gl": country, "hl": language}
        self.fingerprint = digest_of(self.name, country, language)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """Titles and snippets, best first.

        Raises:
            SearchError: see `SerpApi.search`.
        """
        answer = await self._api.search("google", q=query, **self._where)
        hits = [
            TextHit(title=text(row, "title"), text=text(row, "snippet"), url=text(row, "link") or None)
            for row in rows(answer, "organic_results")
        ]
        return [hit for hit in hits if hit.title or hit.text][:k]

    async def check(self) -> None:
        await self._api.check()

    async def close(self) -> None:
        await self._api.close()
