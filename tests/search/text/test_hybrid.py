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


def _ranking(**scores: float) -> list[TextHit]:
    return [TextHit(name, "text", score=score) for name, score in scores.items()]


@pytest.mark.parametrize("order", [1, -1])
def test_a_ranking_whose_best_are_alike_yields_to_one_whose_best_stands_out(order: int) -> None:
    """Every passage about the country holds its name, and one of them is about what was asked."""
    words = _ranking(borders=7.5, domain=7.4, area=7.3, money=7.2, capital=7.1)
    meaning = _ranking(capital=0.71, money=0.61, borders=0.60, domain=0.44)
    assert fused([words, meaning][::order], [0.0, None][::order])[0].title == "capital"


@pytest.mark.parametrize("order", [1, -1])
def test_a_rare_name_outweighs_passages_that_are_all_alike_in_meaning(order: int) -> None:
    words = _ranking(venlo=7.6, other=0.02, third=0.01)
    meaning = _ranking(other=0.85, third=0.84, venlo=0.83, fourth=0.4)
    assert fused([words, meaning][::order], [0.0, None][::order])[0].title == "venlo"


def test_a_name_that_two_passages_hold_is_not_passed_over() -> None:
    words = _ranking(one=7.6, two=7.6, other=0.02)
    meaning = _ranking(other=0.60, third=0.59, two=0.58, one=0.50)
    assert fused([words, meaning], [0.0, None])[0].title in ("one", "two")


def test_where_no_ranking_is_sure_both_count() -> None:
    alike = [_ranking(a=2.0, b=2.0, c=2.0, d=1.0), _ranking(b=2.0, c=2.0, e=2.0, d=1.0)]
    hits = fused(alike)
    assert [hit.title for hit in hits[:2]] == ["b", "c"] and hits[0].score == pytest.approx(1 / 62 + 1 / 61)


def test_the_only_passage_with_the_words_is_sure() -> None:
    assert fused([_ranking(right=0.3), _ranking(wrong=0.6, other=0.59, right=0.58)], [0.0, None])[0].title == "right"


def test_scores_below_the_lowest_that_there_should_be_are_taken_as_they_are() -> None:
    """As a backend of one's own may give them."""
    assert [hit.title for hit in fused([_ranking(a=-1.0, b=-2.0)], [0.0])] == ["a", "b"]


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
