"""Text search by words and by meaning at once: two rankings joined by reciprocal ranks.

A passage's score is the sum of 1 / (60 + rank) over the rankings that hold it (Cormack, Clarke and Büttcher, 2009).
What one of the two cannot find, a rare name or a paraphrase, the other may.
"""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.backend_client import call
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.calls.validation import text_hits
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.bm25 import TextIndex


_RANK_OFFSET = 60
_DEPTH = 4
"""Passages that each backend is asked for, per passage wanted: one may stand low in both and high in their sum."""


@dataclass(frozen=True, kw_only=True)
class HybridConfig(TextConfig):
    """`search.text` with `backend: hybrid`."""

    paths = ("bm25", "dense")

    backend: Literal["hybrid"] = field(
        default="hybrid", metadata={"help": "Passages by their words and by their meaning, two rankings joined."}
    )
    bm25: str = field(metadata={"help": "Folder made by `mmsearch index text`."})
    dense: str = field(metadata={"help": "Folder made by `mmsearch index dense`."})
    encoder: str | None = field(
        default=None, metadata={"help": "Encoder of `dense`, where that is not at the place the index remembers."}
    )

    def open(self, shared: Shared) -> "Hybrid":
        from mmsearch_trl.search.text.dense import DenseIndex  # imports torch

        with named("search.text.bm25"):
            words = TextIndex.open(self.bm25)
        with named("search.text.dense"):
            return Hybrid(words, DenseIndex.open(self.dense, self.encoder))


class Hybrid:
    """A `SearchBackend[str]` over others."""

    name = "hybrid"

    def __init__(self, *backends: SearchBackend[str]) -> None:
        self._backends = backends
        self.fingerprint = digest_of(self.name, *(backend.fingerprint for backend in backends))

    async def search(self, query: str, k: int) -> list[TextHit]:
        """The `k` passages that rank best over all backends.

        Raises:
            SearchError: of a backend, or `BAD_RESPONSE` where one gives something else than text hits.
        """
        answers = await asyncio.gather(*(call(backend, query, _DEPTH * k) for backend in self._backends))
        return fused([text_hits(answer) for answer in answers])[:k]


def fused(rankings: Sequence[Sequence[TextHit]]) -> list[TextHit]:
    """One ranking of all passages, best first; equal scores keep the order of the first ranking that holds them."""
    scores: dict[Hashable, float] = {}
    hits: dict[Hashable, TextHit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            key = hit.id or (hit.title, hit.text)
            hits.setdefault(key, hit)
            scores[key] = scores.get(key, 0.0) + 1.0 / (_RANK_OFFSET + rank)
    best = sorted(scores, key=lambda key: -scores[key])
    return [replace(hits[key], score=scores[key]) for key in best]
