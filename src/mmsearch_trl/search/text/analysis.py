"""How folded text becomes the terms of a BM25 index, by language: words, brought to their stems.

A language that is written without blanks, or that is not known here (`und`, ISO 639's "undetermined"), has no stems.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable

import tantivy

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.text.folding import fold


STEMMED = {
    "ar": "arabic",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "hu": "hungarian",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
ANY_LANGUAGE = "und"
UNSTEMMED = ("ja", "ko", "zh", ANY_LANGUAGE)
_LONGEST_WORD = 192
"""Bytes: 64 letters of any script."""

_LATIN = frozenset({"LATIN"})
_SCRIPTS = {
    "ar": frozenset({"ARABIC"}),
    "el": frozenset({"GREEK"}),
    "ru": frozenset({"CYRILLIC"}),
    "ta": frozenset({"TAMIL"}),
    "zh": frozenset({"CJK", "BOPOMOFO"}),
    "ja": frozenset({"HIRAGANA", "KATAKANA", "CJK"}),
    "ko": frozenset({"HANGUL", "CJK"}),
}
"""Scripts, by the first word of their letters' names in Unicode; of other languages the Latin one."""
_LEAST_LATIN, _LEAST_OTHER = 0.3, 0.02
"""Of a corpus's letters, the share that is of the language's script. Latin words stand in texts of all languages."""


def make_analyzer(language: str) -> tantivy.TextAnalyzer:
    """The analyzer of a language code, for text that was folded.

    Raises:
        UserError: the code is unknown; the known ones are listed.
    """
    if language not in STEMMED and language not in UNSTEMMED:
        known = ", ".join(sorted([*STEMMED, *UNSTEMMED]))
        raise UserError(f"unknown language {language[:40]!r}: choose one of {known} ({ANY_LANGUAGE}: any, unstemmed)")
    words = (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
        .filter(tantivy.Filter.remove_long(_LONGEST_WORD))
        .filter(tantivy.Filter.ascii_fold())  # of letters that are no letter with a mark, such as ø
    )
    if language in STEMMED:
        words = words.filter(tantivy.Filter.stemmer(STEMMED[language]))
    return words.build()


def foreign_script(language: str, texts: Iterable[str]) -> str:
    """Says that texts are not written in the script of a language, and which would fit; empty where they are."""
    if language == ANY_LANGUAGE:
        return ""
    chars = Counter[str]()
    for text in texts:
        chars.update(fold(text))
    scripts = Counter[str]()
    for char, count in chars.items():
        if char.isalpha():
            scripts[unicodedata.name(char, "?").split(" ")[0]] += count
    letters = scripts.total()
    own = sum(scripts[script] for script in _SCRIPTS.get(language, _LATIN))
    if own >= (_LEAST_OTHER if language in _SCRIPTS else _LEAST_LATIN) * letters:
        return ""
    [(most, count)] = scripts.most_common(1)
    covered = {code: sum(map(scripts.__getitem__, known)) for code, known in {"en": _LATIN, **_SCRIPTS}.items()}
    best = max(covered, key=covered.__getitem__)
    fitting = best if 2 * covered[best] > letters else ANY_LANGUAGE
    return (
        f"{count / letters:.0%} of the letters are {most}, {own / letters:.0%} are of the script of language "
        f"{language!r}: name the corpus's own language, such as --language {fitting} ({ANY_LANGUAGE}: any)"
    )


def encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can escape but no tokenizer and no index can encode."""
    return text.encode("utf-8", "ignore").decode("utf-8")
