# ruff: noqa: RUF001
import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.search.text.folding import fold


SAME = [
    ("Amélie", "amelie"),
    ("ＰｙＴｏｒｃｈ　２", "pytorch 2"),
    ("STRASSE", "straße"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("İSTANBUL", "istanbul"),
    ("Москва́", "МОСКВА"),
    ("Фёдор", "фЕдор"),
    ("ﬁnance", "FINANCE"),
    ("soft\u00adhyphen\u200d", "softhyphen"),
    ("١٧٤٢", "1742"),
    ("शिव १२", "शिव 12"),
    ("كَتَبَ", "كتب"),
    ("שָׁלוֹם", "שלום"),
    ("ﾃﾞｰﾀ", "データ"),
    ("㈱", "(株)"),
    ("𝐁𝐞𝐥 ℌ", "bel h"),
    ("don\u2019t", "don't"),
]
OTHER = [("й", "и"), ("ў", "у"), ("が", "か"), ("தமிழ்", "தமிழ"), ("ab", "a b"), ("国", "國")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_ways_of_writing_the_same_words_are_one(one: str, other: str) -> None:
    assert fold(one).split() == fold(other).split() != []


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_other_letters_stay_apart(one: str, other: str) -> None:
    assert fold(one).split() != fold(other).split()


@given(st.text(max_size=60))
def test_how_marks_are_encoded_makes_no_difference(text: str) -> None:
    forms = {tuple(fold(unicodedata.normalize(form, text)).split()) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert forms == {tuple(fold(text).split())}


def test_only_runs_without_blanks_become_pairs() -> None:
    assert fold("PyTorch是框架").split() == ["pytorch", "是", "框", "架", "是框", "框架"]
    assert fold("P y").split() == ["p", "y"]
    assert fold("서울 도시").split() == ["서", "울", "서울", "도", "시", "도시"]
    assert fold("C++ a_b").split() == ["c", "a", "b"]


def test_a_word_of_an_indic_script_stays_whole() -> None:
    assert fold("தமிழ் नमस्ते").split() == ["தமிழ்", "नमस्ते"]


def test_folding_takes_time_in_proportion() -> None:
    def seconds(count: int) -> float:
        text = json.dumps({"a": "né 北京 Straße " * count}, ensure_ascii=False)
        return min(_timed(text) for _ in range(3))

    assert seconds(8000) < 8 * max(seconds(2000), 1e-3)


def _timed(text: str) -> float:
    start = time.perf_counter()
    fold(text)
    return time.perf_counter() - start
