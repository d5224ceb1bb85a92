"""Every local index over one corpus, built by the project's own code; vectors are made once for all of them.

Building a dense index has three parts here: the passages are stored, the vectors are made (told apart, since most of
them may be drawn), FAISS puts its index together. The last two come in by the way that a stopped build goes on.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from benchmarks.search.corpus import Corpus
from benchmarks.search.encoder import Encoded, fill

from mmsearch_trl.search.index_build import build_dense_index, build_text_index
from mmsearch_trl.search.text import dense_build
from mmsearch_trl.search.text.dense import EXACT, VECTORS
from mmsearch_trl.search.text.encoder import TextEncoder


WORDS, FLAT, HYBRID = "bm25", "flat", "hybrid"
_LINKED = ("passages.jsonl", "places.npy", VECTORS)


@dataclass(frozen=True, slots=True)
class Built:
    """
    Attributes:
        arguments: Of `mmsearch serve retriever`.
        seconds: Building it took; without what made its vectors.
        bytes: Of its folder, or of both of a hybrid's.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    bytes: int
    folder: Path


def kinds(count: int) -> dict[str, str]:
    """What `mmsearch index dense --kind` calls the dense indexes over so many passages."""
    lists = 2 ** int(np.log2(2 * np.sqrt(count)))
    return {EXACT: EXACT, FLAT: "Flat", "ivf": f"IVF{min(lists, 1024)},SQ8", "hnsw": "HNSW32"}


def build_all(
    corpus: Corpus, folder: Path, encoder: TextEncoder, encoded: int, seed: int
) -> Iterator[Built | Encoded]:
    """Build one index after the other; before the first dense one, tell what the vectors took."""
    words = build_text_index(corpus.file, folder / WORDS, progress=False)
    yield Built(WORDS, ("--bm25", str(folder / WORDS)), words.seconds, size_of(folder / WORDS), folder / WORDS)
    progress, stored = _begin(corpus, folder, encoder)
    yield _make_vectors(corpus, folder / f".{EXACT}.partial", encoder, encoded, seed)
    for name, kind in kinds(len(corpus)).items():
        if name != EXACT:
            _link(folder / EXACT, folder / f".{name}.partial")
        dense_build._write_progress(folder / f".{name}.partial", replace(progress, done=progress.count))
        start = perf_counter()
        build_dense_index(corpus.file, folder / name, model=encoder.name, kind=kind, progress=False)
        seconds = stored + perf_counter() - start
        yield Built(name, ("--dense", str(folder / name)), seconds, size_of(folder / name), folder / name)
        if name == EXACT:
            both = ("--bm25", str(folder / WORDS), "--dense", str(folder / EXACT))
            size = size_of(folder / WORDS) + size_of(folder / EXACT)
            yield Built(HYBRID, both, words.seconds + seconds, size, folder / EXACT)


def _begin(corpus: Corpus, folder: Path, encoder: TextEncoder) -> tuple[dense_build._Progress, float]:
    """Begin an exact index: its progress, and the seconds that storing the passages took."""
    start = perf_counter()
    progress = dense_build._begin(folder / f".{EXACT}.partial", corpus.file, encoder)
    return progress, perf_counter() - start


def _make_vectors(corpus: Corpus, partial: Path, encoder: TextEncoder, encoded: int, seed: int) -> Encoded:
    vectors = np.lib.format.open_memmap(partial / VECTORS, mode="r+")
    made = fill(vectors, corpus, encoder, encoded, seed)
    vectors.flush()
    return made


def _link(exact: Path, partial: Path) -> None:
    """Begin an index where the exact one was when its vectors were made."""
    partial.mkdir()
    for name in _LINKED:
        os.link(exact / name, partial / name)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
