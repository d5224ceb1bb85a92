"""One form for all ways of writing the same words: passages and questions are brought to it alike.

1. Compatibility forms are resolved (full-width letters, ligatures, half-width kana), whichever way marks were encoded.
2. Marks that a reader may leave out go: accents of Latin and Greek, stress marks and diaereses of Cyrillic, points of
   Hebrew and Arabic. Those that make another letter stay: the breve of й and ў, the voicing of kana, vowels of Indic
   scripts. Format characters (soft hyphens, joiners, directions) go.
3. Case is folded, as Unicode does it (ß is ss), and decimal digits of any script become 0 to 9.
4. What is neither letter, mark nor digit becomes a blank.
5. A run of a script that is written without blanks, and of Hangul, becomes its characters and the pairs of them: no
   word borders are to be found there. Words of other scripts beside it stay whole.
"""

import re
import unicodedata
from itertools import pairwise


FOLDING = 1
"""Part of every text index's fingerprint: an index whose passages were folded otherwise cannot be searched."""

_LOOSE_MARKS = re.compile(
    "["
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0640\u064b-\u0652\u0670\u06d6-\u06dc\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    "\u00ad\u061c\u180b-\u180e\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_WITH_BREVE = "\u0418\u0423\u0438\u0443"
"""Cyrillic I and U, which are other letters with it."""
_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
_UNSPACED = re.compile(
    "["
    "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # kana
    "\u3105-\u312f\u31a0-\u31bf\u1100-\u11ff\ua960-\ua97f\uac00-\ud7fb"  # Bopomofo, Hangul
    "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1050-\u109f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
    "]+"
)


def _marks() -> str:
    """The combining marks of the basic plane, as the inside of a character class (one that `re` makes a table of)."""
    marks = [code for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code, before in zip(marks, [0, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], 0], strict=True) if code != after - 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


_NO_WORD = re.compile(rf"[^\w{_marks()}]|_")
_ASCII = {code: " " for code in range(128) if not chr(code).isalnum()}


def fold(text: str) -> str:
    """The text's words between blanks, in the one form that is compared."""
    if text.isascii():
        return text.lower().translate(_ASCII)
    plain = _LOOSE_MARKS.sub(_kept, unicodedata.normalize("NFKD", text))
    plain = unicodedata.normalize("NFC", plain.casefold())
    plain = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), plain)
    return _UNSPACED.sub(_grams, _NO_WORD.sub(" ", plain))


def _kept(mark: re.Match[str]) -> str:
    """What is left of a mark that a reader may leave out."""
    before = mark.string[mark.start() - 1 : mark.start()]
    return mark[0] if mark[0] == "\u0306" and before and before in _WITH_BREVE else ""


def _grams(run: re.Match[str]) -> str:
    """Characters of a run and the pairs of them, between blanks."""
    pairs = (first + second for first, second in pairwise(run[0]))
    return f" {' '.join([*run[0], *pairs])} "
