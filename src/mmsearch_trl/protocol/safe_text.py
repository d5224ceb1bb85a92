"""The one gate that all text from a tool passes before it is tokenised.

A web page may hold `<|im_end|>`, `<|image_pad|>` or `</information>`. Tokenised as it stands, the first two become
real control tokens and the third ends the block that marks the text as a search result. Here each such string is
broken by an invisible WORD JOINER after its first character: a reader sees the same text, a tokenizer characters.

Invariants: no added token of the tokenizer and no protocol tag survives, however they overlap, whatever their case;
the function is idempotent; nothing but invisible characters is removed or added.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any


WORD_JOINER = "\u2060"
TAGS = ("reason", "think", "answer", "search", "text_search", "information", "img", "image")
"""Names that mean something between angle brackets in the protocols or as an image placeholder."""


def strip_invisible(text: str) -> str:
    """Remove what a reader cannot see but a matcher can trip over: control, format and surrogate characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


class SafeText:
    """Makes untrusted text inert for one tokenizer: `safe(text) -> str`."""

    def __init__(self, tokenizer: Any, tags: Iterable[str] = TAGS) -> None:
        # Tokens of white space alone (Gemma has them) carry no control meaning and occur in every text.
        literals = [token for token in tokenizer.get_added_vocab() if token.strip()]
        literals += [token for token in tokenizer.all_special_tokens if token.strip()]
        names = "|".join(sorted(map(re.escape, tags), key=len, reverse=True))
        starts = [rf"<\s*/?\s*(?:{names})\b"]
        starts += sorted({re.escape(token) for token in literals}, key=len, reverse=True)
        # A look-ahead visits every position, so tokens that overlap or nest are each broken at their own start.
        self._starts = re.compile(rf"(?=(?:{'|'.join(starts)}))(.)", re.IGNORECASE | re.DOTALL)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = backend.normalizer if backend is not None else None

    def __call__(self, text: str) -> str:
        inert = self._break(strip_invisible(text))
        if self._normalizer is not None:
            # A normalising tokenizer may turn look-alikes (full-width brackets) into the real token: judge that form.
            normal = self._normalizer.normalize_str(inert)
            if self._starts.search(normal):
                return self._break(strip_invisible(normal))
        return inert

    def _break(self, text: str) -> str:
        return self._starts.sub(rf"\1{WORD_JOINER}", text)
