"""Free web search by the `ddgs` package: no key, no promise.

It reads the result pages of public search engines, which may be against their terms. An engine that refuses, asks for
a captcha or breaks looks to `ddgs` like one that found nothing, so finding nothing is a failure here: it is tried
again, and never cached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.section import Shared, TextConfig
from mmsearch_trl.search.index.folder import digest_of


ENGINES = "duckduckgo,brave,mojeek,wikipedia"
"""Named, since `auto` shuffles them."""


@dataclass(frozen=True, kw_only=True)
class DdgsConfig(TextConfig):
    """`search.text` with `backend: ddgs`."""

    backend: Literal["ddgs"] = field(
        default="ddgs", metadata={"help": "Public search engines through `ddgs`. Free, and not reliable."}
    )

    def open(self, shared: Shared) -> Any:  # no `SearchBackend` to a type checker: its `search` is a plain function
        return DdgsSearch()


class DdgsSearch:
    """A `SearchBackend[str]`; its calls block, and run on threads.

    Args:
        engines: Names of ddgs's engines, by comma.
        region: Such as `us-en`.
        timeout_s: Seconds that one engine may take.

    Raises:
        UserError: the package is not installed.
    """

    name = "ddgs"

    def __init__(self, *, engines: str = ENGINES, region: str = "us-en", timeout_s: int = 5) -> None:
        with optional("searching by ddgs", "ddgs"):
            import ddgs  # noqa: F401
        self._engines, self._region, self._timeout_s = engines, region, timeout_s
        self.fingerprint = digest_of(self.name, engines, region)

    def search(self, query: str, k: int) -> Sequence[TextHit]:
        """Titles and snippets.

        Raises:
            SearchError: `TIMEOUT`, `RATE_LIMITED` or `UNAVAILABLE`.
        """
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

        try:
            with DDGS(timeout=self._timeout_s) as client:
                rows = client.text(query, region=self._region, max_results=k, backend=self._engines)
        except TimeoutException:
            raise SearchError(FailureKind.TIMEOUT, "the search engines did not answer in time") from None
        except RatelimitException:
            raise SearchError(FailureKind.RATE_LIMITED, "the search engines want fewer searches") from None
        except DDGSException:  # its text holds the address with the query
            raise SearchError(FailureKind.UNAVAILABLE, "the search engines found nothing, or refused") from None
        hits = [
            TextHit(title=_text(row, "title"), text=_text(row, "body"), url=_text(row, "href") or None) for row in rows
        ]
        return [hit for hit in hits if hit.title or hit.text][:k]


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""
