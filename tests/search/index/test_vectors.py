"""The best rows of scores, whole and a piece at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.search.index.vectors import BestRows, best_rows


SCORES = st.lists(st.integers(-3, 3), max_size=40).map(lambda values: np.array(values, np.float32) / 4)


@given(SCORES, st.integers(0, 50))
def test_ties_are_ordered_by_row(scores: np.ndarray, k: int) -> None:
    assert best_rows(scores, k) == sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]


@given(SCORES, st.integers(0, 50), st.integers(1, 9))
def test_pieces_come_to_the_same_as_the_whole(scores: np.ndarray, k: int, piece: int) -> None:
    best = BestRows(k)
    for start in range(0, len(scores), piece):
        best.add(start, scores[start : start + piece])
    assert best.pairs() == [(row, float(scores[row])) for row in best_rows(scores, k)]
