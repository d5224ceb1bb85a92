"""Token ids as text a person can read, one piece per id, so that a mask and a log-prob can be shown on each piece.

A byte-level tokenizer may split one character over several ids. Such ids yield empty pieces until the character is
whole, and the last of them carries it: the pieces joined are always the decoded text.
"""

from collections.abc import Sequence
from typing import Any, Protocol


_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_IDS_PER_CHARACTER = 4
"""UTF-8 needs at most four bytes, so at most four ids, for one character."""


class Decoder(Protocol):
    """What is used of a tokenizer."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any: ...


class TokenSpeller:
    """Spells ids; every id is decoded once per process and remembered, since a batch holds millions of them."""

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """Return one piece per id, special tokens spelled out, `(n,)` to `(n,)`."""
        pieces: list[str] = []
        pending: list[int] = []
        for position, token_id in enumerate(token_ids):
            pending.append(token_id)
            text = self._decode(pending)
            last = position == len(token_ids) - 1
            if text.endswith(_REPLACEMENT) and len(pending) < _MAX_IDS_PER_CHARACTER and not last:
                pieces.append("")
                continue
            pieces.append(text)
            pending.clear()
        return pieces

    def _decode(self, token_ids: list[int]) -> str:
        if len(token_ids) > 1:
            return self._tokenizer.decode(token_ids, skip_special_tokens=False)
        token_id = token_ids[0]
        if token_id not in self._known:
            self._known[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return self._known[token_id]
