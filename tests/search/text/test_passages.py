import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.search.text.passages import contents, one_line, title_and_text


LINES = st.text(st.sampled_from(list("ab\"' \r\n\t\x85\u2028")), max_size=8)


@given(LINES, LINES)
def test_title_and_text_come_back_from_contents(title: str, text: str) -> None:
    assert title_and_text(contents(title, text)) == (one_line(title), text)


@pytest.mark.parametrize(
    ("title", "text", "written"),
    [
        ("", "one line", "one line"),
        ("", "first\nsecond", "\nfirst\nsecond"),
        ("", "first\r\nsecond", "\r\nfirst\r\nsecond"),
        ("Velm", "", "Velm\n"),
        ('"Velm"', 'It says "no".', '"Velm"\nIt says "no".'),
        ("Velm", "a\r\nb", "Velm\r\na\r\nb"),
        ("", "", ""),
    ],
)
def test_how_a_passage_is_written(title: str, text: str, written: str) -> None:
    assert contents(title, text) == written and title_and_text(written) == (title, text)


@pytest.mark.parametrize("written", ['"T"\nx\ny', "T\r\nx\r\ny", "alone", "T\n", "\nx\ny"])
def test_contents_come_back_from_title_and_text(written: str) -> None:
    assert contents(*title_and_text(written)) == written
