"""Exact search over scores, the same on every run."""

import numpy as np
from numpy.typing import NDArray


def best_rows(scores: NDArray[np.float32], k: int) -> list[int]:
    """Rows of the `k` highest scores, highest first, ties by row number."""
    k = min(k, len(scores))
    if k <= 0:
        return []
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= kth)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k].tolist()


class BestRows:
    """The `k` highest of scores that come a piece at a time, highest first, ties by row number."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._pairs: list[tuple[int, float]] = []

    def add(self, start: int, scores: NDArray[np.float32]) -> None:
        """Scores of the rows from `start` on; pieces come in the order of the rows."""
        if len(self._pairs) == self._k and self._k:
            rows = np.flatnonzero(scores > self._pairs[-1][1])  # an equal one comes later, so it is worse
        else:
            rows = np.arange(len(scores))
        chosen = rows[best_rows(scores[rows], self._k)]
        found = zip((start + chosen).tolist(), scores[chosen].tolist(), strict=True)
        self._pairs = sorted([*self._pairs, *found], key=lambda pair: (-pair[1], pair[0]))[: self._k]

    def pairs(self) -> list[tuple[int, float]]:
        """Rows and their scores, best first."""
        return self._pairs
