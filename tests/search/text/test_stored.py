"""What other engines store, as hits; and the addresses of what they store."""

from typing import Any

import pytest

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.text.stored import hit_of, server_and_name


@pytest.mark.parametrize(
    ("fields", "hit"),
    [
        ({"contents": '"Velm"\nA town.\nIt has a tower.'}, TextHit('"Velm"', "A town.\nIt has a tower.", id="7")),
        ({"contents": "One line."}, TextHit("", "One line.", id="7")),
        ({"title": "V", "text": "A town", "url": "http://a", "id": "x"}, TextHit("V", "A town", "http://a", id="x")),
        ({"title": None, "text": "A town.", "url": 3, "id": 4}, TextHit("", "A town.", id="4")),
        ({"contents": "a\nb", "text": "c", "more": [1]}, TextHit("a", "b", id="7")),
    ],
)  # fmt: skip
def test_both_shapes_are_understood(fields: Any, hit: TextHit) -> None:
    assert hit_of(fields, None, 7) == hit


@pytest.mark.parametrize("fields", [{}, {"title": "a"}, {"text": 3}, {"text": "a", "title": 3}, {"contents": None}])
def test_what_holds_no_text_is_an_error(fields: Any) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError)):
        hit_of(fields, 1.0, 7)


def test_an_address_is_a_server_and_a_name() -> None:
    assert server_and_name("https://a.b:9200/wiki/") == ("https://a.b:9200", "wiki")
    assert server_and_name("http://a/search/wiki") == ("http://a/search", "wiki")


@pytest.mark.parametrize(
    "address", ["", "wiki", "http://a", "http://a/", "http:///wiki", "ftp://a/wiki", "http://a/b?c=d"]
)
def test_another_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is no address of something to search"):
        server_and_name(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="read from the environment") as error:
        server_and_name("http://me:sesame@a/wiki")
    assert "sesame" not in str(error.value)
