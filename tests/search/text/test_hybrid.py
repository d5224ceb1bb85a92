import asyncio
from collections.abc import Sequence

import pytest

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import ImageHit, TextHit
from mmsearch_trl.search.text.hybrid import Hybrid, fused


A, B, C, D = (TextHit(name, "text", score=1.0) for name in "abcd")


class Fixed:
    name = "fixed"

    def __init__(self, *hits: TextHit | ImageHit) -> None:
        self.hits, self.fingerprint = hits, repr(hits)
        self.asked: list[int] = []

    def search(self, query: str, k: int) -> Sequence[TextHit | ImageHit]:
        self.asked.append(k)
        return self.hits


def test_what_both_rank_high_comes_first() -> None:
    hits = fused([[A, B, C], [D, B]])
    assert [hit.title for hit in hits] == ["b", "a", "d", "c"]
    assert hits[0].score == pytest.approx(2 / 62) and hits[1].score == pytest.approx(1 / 61)


def test_passages_are_told_apart_by_id_where_they_have_one() -> None:
    one, same, other = TextHit("t", "x", id="1"), TextHit("t2", "y", id="1"), TextHit("t", "x", id="2")
    assert [hit.id for hit in fused([[one, other], [same]])] == ["1", "2"]


def test_each_backend_is_asked_for_more_than_is_wanted() -> None:
    words, meaning = Fixed(A, B), Fixed(B, C)
    hits = asyncio.run(Hybrid(words, meaning).search("q", 2))  # pyright: ignore[reportArgumentType]
    assert [hit.title for hit in hits] == ["b", "a"] and words.asked == meaning.asked == [8]


def test_hits_of_another_kind_are_a_failure() -> None:
    with pytest.raises(SearchError):
        asyncio.run(Hybrid(Fixed(A), Fixed(ImageHit("a"))).search("q", 2))  # pyright: ignore[reportArgumentType]


def test_the_fingerprint_is_that_of_the_parts() -> None:
    assert Hybrid(Fixed(A)).fingerprint != Hybrid(Fixed(B)).fingerprint  # pyright: ignore[reportArgumentType]
