"""What other engines store, as hits; and the addresses of these engines."""

from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.text.stored import hit_of
from mmsearch_trl.search.web.service import check_address


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


@pytest.mark.parametrize("url", ["http://127.0.0.1:9200", "https://a.b/", "http://a/search/"])
def test_an_address_of_a_server_is_taken(url: str) -> None:
    check_address(url)


@pytest.mark.parametrize("url", ["", "wiki", "http:///wiki", "ftp://a", "http://a?c=d"])
def test_another_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is no address of a server"):
        check_address(url)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="read from the environment") as error:
        check_address("http://me:sesame@a")
    assert "sesame" not in str(error.value)
