"""A synthetic corpus as large as one likes: passages of 64 made-up words, half of Zipf's law, half of a topic's own.

The first n passages are the same whatever the size, and so are the questions: six words of one of the first passages.
All passages are equally long, so that BM25 has nothing to say about lengths. No word ends in anything that a stemmer
cuts off.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aou"]
PAIRS = [first + second for first in SYLLABLES for second in SYLLABLES]
VOCABULARY = 200_000
TITLE_WORDS, WORDS = 4, 64
TOPICS, TOPIC_WORDS = 200, 400
QUERY_WORDS = 6
_EXPONENT, _SHIFT = 1.07, 2.7
_CHUNK = 10_000


def words() -> list[str]:
    """Every word, the frequent ones first: of two syllables, then of three."""
    longer = (pair + last for pair in PAIRS for last in SYLLABLES)
    return [*PAIRS, *(next(longer) for _ in range(VOCABULARY - len(PAIRS)))]


@dataclass(frozen=True, slots=True)
class Corpus:
    """
    Attributes:
        file: JSONL of `{"id", "contents"}`; the id is the row's number.
        numbers: The words of every passage by their place in `words()`, `(n, WORDS)`, on disk.
        topics: The topic of every passage, `(n,)`.
    """

    file: Path
    numbers: NDArray[np.uint32]
    topics: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.topics)


def write_corpus(folder: Path, count: int, seed: int) -> Corpus:
    """Write the first `count` passages of this seed, a chunk at a time."""
    names = np.array(words(), dtype=object)
    rng = np.random.default_rng(seed)
    of_topic = rng.integers(0, VOCABULARY, (TOPICS, TOPIC_WORDS), dtype=np.uint32)
    numbers = np.lib.format.open_memmap(folder / "numbers.npy", "w+", np.uint32, (count, WORDS))
    topics = np.empty(count, np.uint16)
    file = folder / "corpus.jsonl"
    with file.open("w", encoding="ascii") as lines:
        for start in range(0, count, _CHUNK):
            rows = slice(start, min(start + _CHUNK, count))
            chunk, topic = _chunk(np.random.default_rng((seed, start)), of_topic)
            numbers[rows], topics[rows] = chunk[: rows.stop - start], topic[: rows.stop - start]
            for row, passage in enumerate(names[numbers[rows]].tolist(), start=start):
                title, text = " ".join(passage[:TITLE_WORDS]), " ".join(passage[TITLE_WORDS:])
                lines.write(json.dumps({"id": str(row), "contents": f'"{title}"\n{text}'}) + "\n")
    return Corpus(file, numbers, topics)


def _chunk(rng: np.random.Generator, of_topic: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    topic = rng.integers(0, TOPICS, _CHUNK, dtype=np.uint16)
    common = _zipf(rng, VOCABULARY, (_CHUNK, WORDS))
    own = of_topic[topic[:, None], _zipf(rng, TOPIC_WORDS, (_CHUNK, WORDS))]
    return np.where(rng.random((_CHUNK, WORDS)) < 0.5, own, common).astype(np.uint32), topic


def _zipf(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Ranks below `count` whose frequency falls with a power of them."""
    shares = np.cumsum((np.arange(count) + _SHIFT) ** -_EXPONENT)
    return np.searchsorted(shares / shares[-1], rng.random(shape))


@dataclass(frozen=True, slots=True)
class Query:
    """Distinct words of one passage, as text and by their numbers."""

    text: str
    numbers: tuple[int, ...]


def queries_of(corpus: Corpus, count: int, within: int, seed: int) -> list[Query]:
    """Questions about the first `within` passages."""
    names, rng = words(), np.random.default_rng((seed, 1))
    rows = rng.permutation(min(within, len(corpus)))[:count]
    return [_query(names, rng.permutation(np.unique(corpus.numbers[row, TITLE_WORDS:]))) for row in rows]


def _query(names: Sequence[str], numbers: NDArray[np.uint32]) -> Query:
    chosen = tuple(int(number) for number in numbers[:QUERY_WORDS])
    return Query(" ".join(names[number] for number in chosen), chosen)


def chunks(corpus: Corpus) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """The numbers a piece at a time, each with the number of its first passage."""
    for start in range(0, len(corpus), _CHUNK):
        yield start, corpus.numbers[start : start + _CHUNK]
