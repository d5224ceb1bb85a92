"""Text search by words and by meaning at once: two rankings joined.

Each ranking gives a passage 1 / (60 + rank) (Cormack, Clarke and Büttcher, 2009) times the share of the way that its
score is above the lowest, times how sure the ranking is: how far its best passage lies above the next two. Ranks
alone say nothing of that: where one finds the passage at once and the other guesses, the guesses would win by
standing in both. A ranking without scores, or with equal ones, counts by its ranks. What one of the two cannot find, a
rare name or a paraphrase, the other may.

Two passages are one where all that is stored of them is the same: a corpus's `id` may name an article of which each
is a part. One that a ranking holds twice counts by its better rank.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.backend_client import call
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.calls.validation import text_hits
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.bm25 import TextIndex


_METHOD = "3"
"""Another number, other answers from the same rankings."""
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
        # A passage with none of the words has 0; how low a similarity of vectors can be is told by no encoder.
        self._lowest = [0.0 if isinstance(backend, TextIndex) else None for backend in backends]
        self.fingerprint = digest_of(self.name, _METHOD, *(backend.fingerprint for backend in backends))

    async def search(self, query: str, k: int) -> list[TextHit]:
        """The `k` passages that rank best over all backends.

        Raises:
            SearchError: of a backend, or `BAD_RESPONSE` where one gives something else than text hits.
        """
        answers = await asyncio.gather(*(call(backend, query, _DEPTH * k) for backend in self._backends))
        return fused([text_hits(answer, _DEPTH * k) for answer in answers], self._lowest)[:k]


def fused(rankings: Sequence[Sequence[TextHit]], lowest: Sequence[float | None] = ()) -> list[TextHit]:
    """One ranking of all passages, best first; equal scores keep the order of the first ranking that holds them.

    Args:
        lowest: Of each ranking, the score of a passage that has nothing of the query; None, and where none is given:
            that of its last candidate.
    """
    shares = [
        _shares([hit.score for hit in ranking], low) for ranking, low in zip_longest(rankings, lowest[: len(rankings)])
    ]
    sureness = [_sureness(each) for each in shares]
    if not any(sureness):
        sureness = [1.0] * len(rankings)
    scores: dict[TextHit, float] = {}
    for ranking, found, sure in zip(rankings, shares, sureness, strict=True):
        best: dict[TextHit, float] = {}
        for hit, share in zip(ranking, found or [1.0] * len(ranking), strict=True):
            best.setdefault(replace(hit, score=None), share)
        for rank, (passage, share) in enumerate(best.items(), start=1):
            scores[passage] = scores.get(passage, 0.0) + sure * share / (_RANK_OFFSET + rank)
    return [replace(passage, score=scores[passage]) for passage in sorted(scores, key=lambda each: -scores[each])]


def _shares(scores: Sequence[float | None], lowest: float | None) -> list[float] | None:
    """How far each score lies above the lowest, from 0 to 1 for the highest; None where they tell nothing."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores) or not known or max(known) == min(known):
        return None
    low = min(known) if lowest is None else min(lowest, *known)
    return [(score - low) / (max(known) - low) for score in known]


def _sureness(shares: Sequence[float] | None) -> float:
    """How far the best lies above the mean of the next two, from 0 to 1; 1 where scores tell nothing."""
    if shares is None:
        return 1.0
    best, *rest = sorted(shares, reverse=True)
    return best - sum(rest[:2]) / 2
