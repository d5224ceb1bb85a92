"""How text is cut into the terms of a BM25 index, by language.

Languages that are written with spaces: words, lower case, accents folded, stemmed. Chinese, Japanese, Korean: single
characters and pairs of them, because a word splitter finds no word borders there and so no match at all.
"""

import tantivy

from mmsearch_trl.core.errors import UserError


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
UNSPACED = ("ja", "ko", "zh")
_LONGEST_WORD = 64


def make_analyzer(language: str) -> tantivy.TextAnalyzer:
    """The analyzer of a language code.

    Raises:
        UserError: the code is unknown; the known ones are listed.
    """
    if language in UNSPACED:
        return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.ngram(1, 2)).filter(tantivy.Filter.lowercase()).build()
    if language not in STEMMED:
        raise UserError(f"unknown language {language!r}: choose one of {', '.join(sorted([*STEMMED, *UNSPACED]))}")
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(_LONGEST_WORD))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer(STEMMED[language]))
        .build()
    )


def encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can escape but no tokenizer and no index can encode."""
    return text.encode("utf-8", "ignore").decode("utf-8")
