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


def test_parts_of_one_article_are_passages_of_their_own() -> None:
    parts = [TextHit("t", text, id="1", score=1.0) for text in "xyz"]
    hits = fused([parts, list(reversed(parts))])
    assert sorted(hit.text for hit in hits) == ["x", "y", "z"]
    assert all(hit.score is not None and hit.score <= 2 / 61 for hit in hits)


@pytest.mark.parametrize(
    "other", [TextHit("t", "x", id="2"), TextHit("u", "x", id="1"), TextHit("t", "x", "http://a", id="1")]
)
def test_passages_that_differ_in_anything_are_not_one(other: TextHit) -> None:
    one = TextHit("t", "x", id="1", score=9.0)
    assert len(fused([[one, other], [other, one]])) == 2


def test_a_passage_that_a_ranking_holds_twice_counts_by_its_better_rank() -> None:
    [first, second] = fused([[A, A, B], [A, B, B]])
    assert (first.title, second.title) == ("a", "b")
    assert first.score == pytest.approx(2 / 61) and second.score == pytest.approx(2 / 62)


def test_a_ranking_that_is_sure_outweighs_one_that_guesses() -> None:
    def ranking(**scores: float) -> list[TextHit]:
        return [TextHit(name, "text", score=score) for name, score in scores.items()]

    sure = ranking(right=0.9, wrong=0.31, other=0.3)
    guess = ranking(wrong=5.02, other=5.01, more=5.0, right=4.99, last=1.0)
    assert fused([guess, sure])[0].title == "right"
    assert fused([sure, guess])[0].title == "right"


@pytest.mark.parametrize("score", [None, 0.0, 3.0])
def test_without_scores_that_tell_anything_ranks_alone_count(score: float | None) -> None:
    hits = fused([[TextHit(name, "", score=score) for name in "abc"]])
    assert [hit.score for hit in hits] == [pytest.approx(1 / (60 + rank)) for rank in (1, 2, 3)]


def test_each_backend_is_asked_for_more_than_is_wanted() -> None:
    words, meaning = Fixed(A, B), Fixed(B, C)
    hits = asyncio.run(Hybrid(words, meaning).search("q", 2))  # pyright: ignore[reportArgumentType]
    assert [hit.title for hit in hits] == ["b", "a"] and words.asked == meaning.asked == [8]


def test_hits_of_another_kind_are_a_failure() -> None:
    with pytest.raises(SearchError):
        asyncio.run(Hybrid(Fixed(A), Fixed(ImageHit("a"))).search("q", 2))  # pyright: ignore[reportArgumentType]


def test_the_fingerprint_is_that_of_the_parts() -> None:
    assert Hybrid(Fixed(A)).fingerprint != Hybrid(Fixed(B)).fingerprint  # pyright: ignore[reportArgumentType]
