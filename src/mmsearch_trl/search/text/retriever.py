"""Text search by a retrieval server with Search-R1's contract: `POST /retrieve`.

Asked with `{"queries": [...], "topk": k, "return_scores": true}`, it answers `{"result": [[{"document": {"id",
"contents"}, "score"}]]}`, one list per query, best first; the first of several lines of `contents` is the title.
Scores are always asked for: Search-R1's own server fails without, and for two queries gives the wrong documents. Its
web variants leave scores out, and rerankers give a document as bare text; both are understood.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.calls.validation import text_hits
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.passages import title_and_text
from mmsearch_trl.search.web.service import RETRIEVER_TOKEN, Service, check_url


_READING = "2"
"""Another number, other hits from the same answer."""


@dataclass(frozen=True, kw_only=True)
class RetrieverConfig(TextConfig):
    """`search.text` with `backend: retriever`."""

    backend: Literal["retriever"] = field(
        default="retriever",
        metadata={"help": "A server with Search-R1's `/retrieve`, such as `mmsearch serve retriever`."},
    )
    url: str = field(metadata={"help": "Its address. A token that it wants is in MMSEARCH_RETRIEVER_TOKEN."})
    corpus: str = field(default="", metadata={"help": "Name of what it serves: another name, other cached results."})

    def __post_init__(self) -> None:
        super().__post_init__()
        with named(f"{self.section}.url"):
            check_url(self.url, "http://127.0.0.1:8000/retrieve")

    def open(self, shared: Shared) -> "Retriever":
        return Retriever(self.url, token=os.environ.get(RETRIEVER_TOKEN), corpus=self.corpus)


class Retriever:
    """A `SearchBackend[str]` over a retrieval server.

    Args:
        url: Of the endpoint, such as `http://127.0.0.1:8000/retrieve`, or of the server that has one.
        token: Bearer token, where the server wants one.
        corpus: Name of what it serves, part of the key of cached results: a server that serves something else under
            the same address must not be answered for by the old results.
    """

    name = "retriever"

    def __init__(self, url: str, *, token: str | None = None, corpus: str = "") -> None:
        server = url.rstrip("/").removesuffix("/retrieve")
        self._service = Service(server, token=token)
        self.fingerprint = digest_of(self.name, _READING, server, corpus)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """The `k` best passages, best first.

        Raises:
            SearchError: see `Service.post`; `BAD_RESPONSE` where the answer is not of the contract.
        """
        request = {"queries": [query], "topk": k, "return_scores": True}
        answer = await self._service.post("/retrieve", json=request)
        try:
            [rows] = answer["result"]
            return text_hits([_hit(row) for row in rows[:k]])
        except (TypeError, KeyError, ValueError, AttributeError):
            raise SearchError(FailureKind.BAD_RESPONSE, "the answer is not of Search-R1's contract") from None

    async def check(self) -> None:
        """See that the server is there and answers by the contract; to search it costs nothing.

        Raises:
            SearchError: see `search`.
        """
        await self.search("Is anybody there?", 1)

    async def close(self) -> None:
        await self._service.close()


def _hit(row: Any) -> TextHit:
    """A passage in any of the shapes that servers give it."""
    document, score = (
        (row["document"], row.get("score")) if isinstance(row, dict) and "document" in row else (row, None)
    )
    contents = document if isinstance(document, str) else document["contents"]
    title, text = title_and_text(contents)
    more = document if isinstance(document, dict) else {}
    return TextHit(
        title=title,
        text=text,
        url=more["url"] if isinstance(more.get("url"), str) else None,
        score=score,
        id=str(more["id"]) if isinstance(more.get("id"), str | int) else None,
    )
