import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.rewards.matching import exact_match, normalize_answer, substring_match


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ('The "Titanic"!', "titanic"),
        ("U.S.A.", "usa"),
        ("3.14", "314"),
        ("well-known", "wellknown"),
        ("theatre", "theatre"),
        ("an apple\t a day", "apple day"),
        ("Titanic\u2019s", "titanic\u2019s"),
        ("北京。", "北京。"),
        ("a an the", ""),
    ],
)
def test_normalisation_folds_case_ascii_punctuation_articles_and_space_only(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@given(st.text())
def test_every_answer_matches_itself(text: str) -> None:
    assert exact_match(text, [text])
    assert substring_match(text, [text])


@given(st.text(), st.lists(st.text(), max_size=4))
def test_an_exact_match_is_a_substring_match(answer: str, golds: list[str]) -> None:
    assert substring_match(answer, golds) or not exact_match(answer, golds)


def test_any_gold_is_enough_and_none_matches_nothing() -> None:
    assert exact_match("Titanic", ["Olympic", "titanic"])
    assert not exact_match("Titanic", [])
    assert not substring_match("Titanic", [])


def test_a_gold_inside_the_answer_matches_by_substring_only() -> None:
    assert substring_match("the RMS Titanic", ["titanic"])
    assert not exact_match("the RMS Titanic", ["titanic"])
    assert not substring_match("Titanic", ["RMS Titanic"])
