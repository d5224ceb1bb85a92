"""What should be found: brute force over all passages, by words and by vectors."""

from collections.abc import Sequence

import numpy as np
from benchmarks.search.corpus import VOCABULARY, WORDS, Corpus, Query, chunks
from benchmarks.search.encoder import Vectors
from numpy.typing import NDArray

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.text.hybrid import fused


_K1 = 1.2
_ROWS_AT_ONCE = 65_536


class Ranking(list[int]):
    """Numbers of passages, best first, and their scores, by which rankings are joined."""

    scores: Sequence[float | None] = ()


def by_words(corpus: Corpus, queries: Sequence[Query], k: int) -> list[Ranking]:
    """The `k` best passages of each query by BM25, of those that hold a word of it; ties by number.

    All passages are equally long, so that the part of the formula that is about lengths is 1.
    """
    terms = np.unique([number for query in queries for number in query.numbers])
    place = np.full(VOCABULARY, len(terms))
    place[terms] = np.arange(len(terms))
    wanted = [place[list(query.numbers)] for query in queries]
    holding = np.zeros(len(terms))
    for _, numbers in chunks(corpus):
        holding += (_frequencies(place[numbers], len(terms)) > 0).sum(axis=0)
    weights = np.log1p((len(corpus) - holding + 0.5) / (holding + 0.5))
    best = [_Best(k) for _ in queries]
    for start, numbers in chunks(corpus):
        frequencies = _frequencies(place[numbers], len(terms))
        scores = weights * frequencies * (_K1 + 1) / (frequencies + _K1)
        for found, columns in zip(best, wanted, strict=True):
            found.add(start, scores[:, columns].sum(axis=1))
    return [found.rows(above=0.0) for found in best]


def _frequencies(places: NDArray[np.int64], terms: int) -> NDArray[np.float64]:
    """How often each passage holds each term, `(n, terms)`."""
    rows = np.repeat(np.arange(len(places)), WORDS) * (terms + 1)
    counts = np.bincount(rows + places.ravel(), minlength=len(places) * (terms + 1))
    return counts.reshape(len(places), terms + 1)[:, :terms].astype(np.float64)


def by_vectors(vectors: Vectors, queries: Vectors, k: int) -> list[Ranking]:
    """The `k` passages with the largest inner products."""
    best = [_Best(k) for _ in queries]
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        scores = queries @ np.asarray(vectors[start : start + _ROWS_AT_ONCE]).T
        for found, row in zip(best, scores, strict=True):
            found.add(start, row.astype(np.float64))
    return [found.rows(above=-np.inf) for found in best]


LOWEST = (0.0, None)
"""Scores of passages that have nothing of a query: by words, and by vectors, where nobody knows it."""


def joined(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], k: int) -> list[Ranking]:
    """Both rankings of each query as one."""
    return [
        Ranking(int(hit.id or 0) for hit in fused([_hits(rows) for rows in both], LOWEST)[:k])
        for both in zip(first, second, strict=True)
    ]


def _hits(rows: Sequence[int]) -> list[TextHit]:
    scores = getattr(rows, "scores", ()) or [None] * len(rows)
    return [TextHit("", "", id=str(row), score=score) for row, score in zip(rows, scores, strict=True)]


def recall(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """The share of what should be found that is."""
    hits = sum(len(set(mine) & set(theirs)) for mine, theirs in zip(found, wanted, strict=True))
    return hits / sum(map(len, wanted))


class _Best:
    """The `k` best rows of what was added so far, best first, ties by number."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores = np.empty(0)
        self._rows = np.empty(0, np.int64)

    def add(self, start: int, scores: NDArray[np.float64]) -> None:
        scores = np.concatenate([self._scores, np.round(scores, 9)])
        rows = np.concatenate([self._rows, np.arange(start, start + len(scores) - len(self._rows))])
        if len(scores) > self._k:
            kept = scores >= np.partition(scores, len(scores) - self._k)[len(scores) - self._k]
            scores, rows = scores[kept], rows[kept]
        order = np.lexsort((rows, -scores))[: self._k]
        self._scores, self._rows = scores[order], rows[order]

    def rows(self, *, above: float) -> Ranking:
        """Those with a score above this one."""
        found = Ranking(self._rows[self._scores > above].tolist())
        found.scores = self._scores[self._scores > above].tolist()
        return found
