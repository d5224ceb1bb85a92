from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.traces.tokens import TokenSpeller


class ByteTokenizer:
    """One id per UTF-8 byte, the hardest case for spelling."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


@given(st.text())
def test_the_pieces_joined_are_the_text(text: str):
    ids = list(text.encode())
    pieces = TokenSpeller(ByteTokenizer())(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_a_character_is_carried_by_its_last_id():
    assert TokenSpeller(ByteTokenizer())(list("a搜".encode())) == ["a", "", "", "搜"]


def test_broken_bytes_do_not_swallow_what_follows():
    pieces = TokenSpeller(ByteTokenizer())([0xFF, *b"ok"])
    assert len(pieces) == 3
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}ok"


def test_every_id_is_decoded_once():
    calls: list[Sequence[int]] = []

    class Counting(ByteTokenizer):
        def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
            calls.append(token_ids)
            return super().decode(token_ids, skip_special_tokens)

    TokenSpeller(Counting())(b"aaaa")
    assert len(calls) == 1
