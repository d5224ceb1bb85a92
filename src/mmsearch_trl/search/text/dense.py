"""Text search by meaning: passages and questions as vectors of one encoder, nearest first.

    manifest.json                   what it is and which encoder made it
    passages.jsonl, places.npy      the passages (`passages.py`)
    vectors.npy                     unit vectors, float32 (n, d), memory-mapped, shared by the processes of a machine
    faiss.index                     only where the index is not exact

Exact search is a matrix product: deterministic, ties by row, about 13 ms for 100,000 x 768 on two cores. FAISS's
indexes trade some of the answers for speed or memory; any that `faiss.index_factory` names can be built.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch_trl.search.batching import Batched
from mmsearch_trl.search.image.descriptor import FloatArray
from mmsearch_trl.search.index_folder import Manifest, check_encoder, read_manifest
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.passages import Passages
from mmsearch_trl.search.threads import call_blocking
from mmsearch_trl.search.types import TextHit
from mmsearch_trl.search.vectors import best_rows


VECTORS, FAISS = "vectors.npy", "faiss.index"
EXACT = "exact"
_QUERIES = 32


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
            self._vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        count, width = self._vectors.shape if self._vectors is not None else (self._faiss.ntotal, self._faiss.d)
        if (count, width) != (manifest.count, encoder.dim) or len(self._passages) != manifest.count:
            raise ValueError(
                f"{folder} is damaged: {manifest.count} passages of {encoder.dim} numbers were expected, found "
                f"{len(self._passages)} passages and vectors ({count}, {width}); build it again"
            )
        self._encode = Batched(self._vectors_of, _QUERIES)

    @classmethod
    def open(cls, path: str | Path, model: str | None = None) -> "DenseIndex":
        """Open an index without rebuilding anything.

        Args:
            model: Place of the encoder, where it is not the one that the index remembers.

        Raises:
            ImportError: FAISS is needed and not installed.
            ValueError: there is no index, it is damaged, or it was built with another encoder.
        """
        folder = Path(path)
        manifest = read_manifest(folder, "dense")
        encoder = TextEncoder(model or manifest.model or "")
        check_encoder(folder, manifest, encoder.fingerprint)
        return cls(folder, manifest, encoder)

    def __len__(self) -> int:
        return len(self._passages)

    async def search(self, query: str, k: int) -> list[TextHit]:
        """The `k` nearest passages, best first, scored by cosine; fewer where FAISS finds fewer."""
        return await call_blocking(self._nearest, await self._encode(query), k)

    def search_now(self, queries: Sequence[str], k: int) -> list[list[TextHit]]:
        """As `search`, for several queries and on the calling thread."""
        return [self._nearest(vector, k) for vector in self._vectors_of(queries)]

    def _vectors_of(self, queries: Sequence[str]) -> list[FloatArray]:
        return list(self._encoder.queries(queries))

    def _nearest(self, vector: FloatArray, k: int) -> list[TextHit]:
        if self._vectors is not None:
            # Rounded, because a matrix product may give equal rows scores that differ in their last bit.
            scores = np.round(self._vectors @ vector, 6)
            rows = best_rows(scores, k)
            found = [(row, float(scores[row])) for row in rows]
        else:
            values, numbers = self._faiss.search(vector[None], min(k, self._faiss.ntotal))
            # FAISS fills up with -1, which is no passage.
            pairs = [(int(n), float(v)) for n, v in zip(numbers[0], values[0], strict=True) if n >= 0]
            found = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
        passages = self._passages.read([row for row, _ in found])
        return [
            TextHit(title=title, text=text, url=url, score=score, id=name)
            for (title, text, url, name), (_, score) in zip(passages, found, strict=True)
        ]


def read_faiss(path: Path) -> Any:
    """A FAISS index, memory-mapped where its kind can be."""
    faiss = import_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise ValueError(f"{path} is no FAISS index: {str(error).splitlines()[0]}") from error


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an index that is not exact needs mmsearch-trl[dense]") from error
    return faiss
