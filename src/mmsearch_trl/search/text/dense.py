"""Text search by meaning: passages and questions as vectors of one encoder, nearest first.

    manifest.json                   what it is and which encoder made it
    passages.jsonl, places.npy      the passages (`passages.py`)
    vectors.npy                     vectors, float32 (n, d), memory-mapped, shared by the processes of a machine
    faiss.index                     only where the index is not exact

Exact search is a matrix product: ties by row, about 13 ms for 100,000 x 768 on two cores. FAISS's indexes trade some
of the answers for speed or memory; any that `faiss.index_factory` names can be built. Queries that come at the same
time are encoded together, and searched together while the next ones are encoded: reading the vectors is what takes
time, and one reading serves them all.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.calls.batching import Batched
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.folder import Manifest, check_encoder, opening, read_manifest
from mmsearch_trl.search.index.vectors import BestRows
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.passages import Passages


VECTORS, FAISS = "vectors.npy", "faiss.index"
EXACT = "exact"
_QUERIES = 32
_ROWS = 16_384
"""Vectors that are compared at once: their scores for all queries of a batch stay in the processor's cache."""

_LEAST_LISTS = 16
"""Lists of an IVF index that are looked through; the root of their number where that is more: 32 of 1024."""
_LINKS = 64
"""Candidates that a search of HNSW keeps."""


class DenseIndex:
    """Finds passages by their vectors; a `SearchBackend[str]`. Open one with `DenseIndex.open`."""

    name = "dense-index"

    def __init__(self, folder: Path, manifest: Manifest, encoder: TextEncoder) -> None:
        self.fingerprint = manifest.fingerprint
        self._encoder = encoder
        self._passages = Passages(folder)
        self._vectors: FloatArray | None = None
        self._faiss: Any = None
        if (folder / FAISS).exists():
            self._faiss = read_faiss(folder / FAISS)
        else:
            # Copy on write: torch takes nothing that is read-only. Nobody writes, so the pages stay the file's.
            with opening(folder):
                self._vectors = np.load(folder / VECTORS, mmap_mode="c", allow_pickle=False)
        count, width = self._vectors.shape if self._vectors is not None else (self._faiss.ntotal, self._faiss.d)
        if (count, width) != (manifest.count, encoder.dim) or len(self._passages) != manifest.count:
            raise UserError(
                f"{folder} is damaged: {manifest.count} passages of {encoder.dim} numbers were expected, found "
                f"{len(self._passages)} passages and vectors ({count}, {width}); build it again"
            )
        self._encode = Batched(self._vectors_of, _QUERIES)
        self._search = Batched(self._found, _QUERIES)

    @classmethod
    def open(cls, path: str | Path, model: str | None = None) -> "DenseIndex":
        """Open an index without rebuilding anything.

        Args:
            model: Place of the encoder, where it is not the one that the index remembers.

        Raises:
            UserError: there is no index, it is damaged, it was built with another encoder, or FAISS is needed and not
                installed.
        """
        folder = Path(path)
        manifest = read_manifest(folder, "dense")
        query, passage = manifest.prefixes or (None, None)
        encoder = TextEncoder(model or manifest.model or "", query_prefix=query, passage_prefix=passage)
        check_encoder(folder, manifest, encoder.fingerprint)
        return cls(folder, manifest, encoder)

    def __len__(self) -> int:
        return len(self._passages)

    async def search(self, query: str, k: int) -> list[TextHit]:
        """The `k` nearest passages, best first, scored by inner product; fewer where FAISS finds fewer."""
        return await self._search((await self._encode(query), k))

    def search_now(self, queries: Sequence[str], k: int) -> list[list[TextHit]]:
        """As `search`, for several queries and on the calling thread."""
        return self._found([(vector, k) for vector in self._vectors_of(queries)])

    def _vectors_of(self, queries: Sequence[str]) -> list[FloatArray]:
        return list(self._encoder.queries(queries))

    def _found(self, wanted: Sequence[tuple[FloatArray, int]]) -> list[list[TextHit]]:
        """The passages nearest to each of several vectors, so many as are wanted for it."""
        vectors, most = np.stack([vector for vector, _ in wanted]), max(k for _, k in wanted)
        near = self._nearest_by_faiss if self._vectors is None else self._nearest
        return [self._hits(pairs[:k]) for pairs, (_, k) in zip(near(vectors, most), wanted, strict=True)]

    def _nearest(self, queries: FloatArray, k: int) -> Iterator[list[tuple[int, float]]]:
        assert self._vectors is not None
        best = [BestRows(k) for _ in queries]
        for start in range(0, len(self._vectors), _ROWS):
            # By torch, which has encoded: waiting threads of two libraries take the cores from each other.
            scores = torch.from_numpy(queries) @ torch.from_numpy(self._vectors[start : start + _ROWS]).T
            # Rounded, because a matrix product may give equal rows scores that differ in their last bit.
            for found, row in zip(best, np.round(scores.numpy(), 6), strict=True):
                found.add(start, row)
        return (found.pairs() for found in best)

    def _nearest_by_faiss(self, queries: FloatArray, k: int) -> Iterator[list[tuple[int, float]]]:
        scores, rows = self._faiss.search(queries, max(1, min(k, self._faiss.ntotal)))
        for numbers, values in zip(rows.tolist(), scores.tolist(), strict=True):
            # FAISS fills up with -1, which is no passage.
            pairs = [(number, value) for number, value in zip(numbers, values, strict=True) if number >= 0]
            yield sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def _hits(self, found: Sequence[tuple[int, float]]) -> list[TextHit]:
        passages = self._passages.read([row for row, _ in found])
        return [
            TextHit(title=title, text=text, url=url, score=score, id=name)
            for (title, text, url, name), (_, score) in zip(passages, found, strict=True)
        ]


def read_faiss(path: Path) -> Any:
    """A FAISS index, memory-mapped where its kind can be, and set to look further than FAISS's own default.

    That is one list of an IVF index, and 16 links of HNSW: it finds a good part of the answers only.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise UserError(f"{path} is no FAISS index: {str(error).splitlines()[0]}") from error
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = max(_LEAST_LISTS, math.isqrt(lists.nlist))
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = _LINKS
    return index


def import_faiss() -> Any:
    with optional("an index that is not exact", "dense"):
        import faiss
    return faiss
