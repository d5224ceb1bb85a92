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

from mmsearch_trl.core.errors import UserError


WORD_JOINER = "\u2060"
TAGS = ("reason", "think", "answer", "search", "text_search", "information", "img", "image")
"""Names that mean something between angle brackets in the protocols or as an image placeholder."""
_ROLE_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
"""What the templates of Llama 2 and Mistral write around roles; not every tokenizer has tokens of them."""
_MARKED_BLANK = "\u2581"
"""A blank in SentencePiece's vocabularies: their tokenizers make the two one, and decode both to a blank."""
_BLANKS = rf"[\s{_MARKED_BLANK}]*"


def strip_invisible(text: str) -> str:
    """Remove what a reader cannot see but a matcher can trip over: control, format and surrogate characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for the beginnings of texts. Those that begin alike share that part: Gemma has 6,000 tokens, and a
    page may hold a `<` at every character."""
    tails: dict[str, list[str]] = {}
    for text in texts:
        if not text:
            return ""  # what goes on from here begins with this text
        tails.setdefault(text[0], []).append(text[1:])
    return f"(?:{'|'.join(re.escape(first) + _any_of(rest) for first, rest in sorted(tails.items()))})"


class SafeText:
    """Makes untrusted text inert for one tokenizer: `safe(text) -> str`.

    Raises:
        UserError: The tokenizer removes the WORD JOINER before it looks for tokens.
    """

    def __init__(self, tokenizer: Any, tags: Iterable[str] = TAGS) -> None:
        literals = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens, *_ROLE_MARKS}
        # Tokens of white space alone (Gemma has them) carry no control meaning and occur in every text.
        literals = {token for token in literals if token.replace(_MARKED_BLANK, " ").strip()}
        # Blanks are never given back: two runs of them that may share one are tried in every division.
        tag = rf"<{_BLANKS}+(?:/{_BLANKS}+)?+(?:{'|'.join(map(re.escape, tags))})\b"
        # A look-ahead visits every position, so tokens that overlap or nest are each broken at their own start.
        pattern = rf"(?={tag}|{_any_of(literals)})(.)"
        self._starts = re.compile(pattern, re.IGNORECASE | re.DOTALL)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = backend.normalizer if backend is not None else None
        if self._normalizer is not None and WORD_JOINER not in self._normalizer.normalize_str(f"<{WORD_JOINER}s>"):
            raise UserError(
                "the tokenizer's normaliser removes U+2060 (WORD JOINER), by which control tokens and tags in tool "
                "output are broken: with this tokenizer a page could close its block or become a tag"
            )

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
