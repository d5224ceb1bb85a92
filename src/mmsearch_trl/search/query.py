"""What is searched by: a text as it is sent, and what a query is known by."""

import unicodedata
from typing import Any

from mmsearch_trl.core.images import image_digest
from mmsearch_trl.core.observation import ImageQuery
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.threads import call_blocking


MAX_QUERY_CHARS = 2000
"""A longer text query is cut: it leaves the machine, and no search engine reads more."""


def normalise_query(query: str) -> str:
    """Unicode normal form C, control characters and lone surrogates as blanks, blanks collapsed, length bounded."""
    plain = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in query[:MAX_QUERY_CHARS])
    return " ".join(unicodedata.normalize("NFC", plain).split())


async def identity(backend: SearchBackend[Any], query: str | ImageQuery) -> list[str | None]:
    """What a result is cached under: a text; an image's digest, and the names it goes by, unless the backend says that
    only pixels matter to it."""
    if isinstance(query, str):
        return [query]
    digest = await call_blocking(image_digest, query.image)
    return [digest] if getattr(backend, "by_pixels", False) else [digest, query.data_id, query.url]
