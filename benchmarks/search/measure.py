"""One size of the corpus: build every index, serve each beside the plain server, ask both in turns.

A round asks the plain server and then ours, for the same seconds and the same queries; the ratio of a round is of two
measurements that lie seconds apart. The server that is not asked does nothing.
"""

import socket
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from benchmarks.search import load
from benchmarks.search.corpus import Query, queries_of, write_corpus
from benchmarks.search.encoder import Encoded
from benchmarks.search.indexes import FLAT, HYBRID, WORDS, build_all, size_of
from benchmarks.search.load import LOADS, Load, Sample
from benchmarks.search.process import Server, served
from benchmarks.search.truth import by_vectors, by_words, joined, recall

from mmsearch_trl.search.text.dense import EXACT, FAISS, VECTORS
from mmsearch_trl.search.text.encoder import TextEncoder


_ARROW = "arrow"
_QUERIES = 4
"""Queries that are asked, per query that is judged."""
_HYBRID_DEPTH = 4
"""Passages that each ranking gives to a joined one, per passage wanted (`search/text/hybrid.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Attributes:
        k: Passages that are asked for.
        rounds: Pairs of measurements of each load.
        seconds: Of one measurement.
        encoded: Passages that are encoded; the vectors of the others are drawn.
        judged: Queries whose answers are held against brute force.
        within: Queries are about the first so many passages.
    """

    k: int = 10
    rounds: int = 3
    seconds: float = 1.5
    encoded: int = 10_000
    judged: int = 100
    within: int = 10_000
    seed: int = 0


class Size:
    """One size of the corpus, in a folder of its own.

    Args:
        tell: Is told of what is done.
    """

    def __init__(
        self, count: int, folder: Path, encoder: TextEncoder, settings: Settings, tell: Callable[[str], None]
    ) -> None:
        self._folder, self._encoder, self._settings = folder, encoder, settings
        self._log = folder / "servers.log"
        self._tell = lambda text: tell(f"{count:,} passages: {text}")
        start = perf_counter()
        self._corpus = write_corpus(folder, count, settings.seed)
        self._corpus_s = perf_counter() - start
        self._queries = queries_of(self._corpus, _QUERIES * settings.judged, settings.within, settings.seed)

    def measure(self) -> dict[str, Any]:
        """The report of this size."""
        report: dict[str, Any] = {"corpus_mb": _mb(self._corpus.file.stat().st_size), "backends": {}}
        built = []
        for part in build_all(self._corpus, self._folder, self._encoder, self._settings.encoded, self._settings.seed):
            if isinstance(part, Encoded):
                report["encoded"] = part.encoded
                report["drawn"] = len(self._corpus) - part.encoded
                report["encode_ms_per_passage"] = round(part.ms_per_passage, 3)
                self._tell(f"vectors made, {part.encoded:,} encoded at {part.ms_per_passage:.2f} ms")
            else:
                built.append(part)
                self._tell(f"{part.name} built in {part.seconds:.1f} s")
        wanted = self._wanted()
        self._tell("brute force done")
        index = self._folder / FLAT / FAISS
        with self._plain(index) as plain:
            size = index.stat().st_size + size_of(self._folder / _ARROW)
            report["plain"] = self._describe(plain, wanted[FLAT], size)
            for part in built:
                with served(
                    "mmsearch_trl.commands.main", ("serve", "retriever", *part.arguments), _port(), self._log
                ) as ours:
                    loads = {name: self._pairs(plain, ours, load) for name, load in LOADS.items()}
                    about = self._describe(ours, wanted[part.name], part.bytes)
                report["backends"][part.name] = {"build_s": round(part.seconds, 2)} | about | {"load": loads}
                self._tell(f"{part.name} measured, {loads['1 client']['ours']['p50_ms']:.1f} ms")
            report["plain"] |= plain.memory() or {}
        return report

    def _wanted(self) -> dict[str, Any]:
        """What each index should find."""
        k, judged = self._settings.k, self._queries[: self._settings.judged]
        depth = _HYBRID_DEPTH * k
        vectors = np.load(self._folder / EXACT / VECTORS, mmap_mode="r")
        words = by_words(self._corpus, judged, depth)
        dense = by_vectors(vectors, self._encoder.queries([query.text for query in judged]), depth)
        near = [rows[:k] for rows in dense]
        return {
            **dict.fromkeys((EXACT, FLAT, "ivf", "hnsw"), near),
            WORDS: [rows[:k] for rows in words],
            HYBRID: joined(words, dense, k),
        }

    def _plain(self, index: Path) -> AbstractContextManager[Server]:
        arguments = {
            "index": index,
            "corpus": self._corpus.file,
            "model": self._encoder.name,
            "cache": self._folder / _ARROW,
        }
        flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        return served("benchmarks.search.plain_server", flags, _port(), self._log)

    def _describe(self, server: Server, wanted: list[list[int]], size: int) -> dict[str, Any]:
        found = load.answers(server.url, _texts(self._queries[: len(wanted)]), self._settings.k)
        return {
            "disk_mb": _mb(size),
            "start_s": round(server.start_s, 2),
            "recall": round(recall(found, wanted), 4),
            **(server.memory() or {}),
        }

    def _pairs(self, plain: Server, ours: Server, how: Load) -> dict[str, Any]:
        texts, settings = _texts(self._queries), self._settings
        for server in (plain, ours):
            load.warm_up(server.url, texts, how, settings.k)
        rounds = [
            tuple(load.measure(server.url, texts, how, settings.k, settings.seconds) for server in (plain, ours))
            for _ in range(settings.rounds)
        ]
        theirs, mine = ([pair[side] for pair in rounds] for side in (0, 1))
        return {
            "plain": _summary(theirs),
            "ours": _summary(mine),
            "p50_ratio": _spread([b.ms(50) / a.ms(50) for a, b in rounds]),
            "p95_ratio": _spread([b.ms(95) / a.ms(95) for a, b in rounds]),
            "qps_ratio": _spread([b.per_second / a.per_second for a, b in rounds]),
        }


def _summary(samples: Sequence[Sample]) -> dict[str, Any]:
    every = Sample(samples[0].load, [seconds for sample in samples for seconds in sample.requests])
    return {
        "p50_ms": round(every.ms(50), 3),
        "p95_ms": round(every.ms(95), 3),
        "qps": round(statistics.median(sample.per_second for sample in samples), 2),
        "requests": len(every.requests),
    }


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    """Least, median and most."""
    found = {"least": min(ratios), "median": statistics.median(ratios), "most": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def _texts(queries: Sequence[Query]) -> list[str]:
    return [query.text for query in queries]


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _mb(size: int) -> float:
    return round(size / 1e6, 2)
