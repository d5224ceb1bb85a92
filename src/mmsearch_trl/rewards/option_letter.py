r"""The letter of an option, or the letters of several, in the spellings in which people and models write them.

"A", "(a)", "A.", "A) 12 cm", "A 12 cm", "option A", "the answer is A", "\text{A}", "$\boxed{A}$", "**A**", in full
width, Chinese "选A", "答案是A", "A项". An A before a word is an article, and "I" before one a pronoun. Of several
letters the last counts, but for one with which the text begins as a list item does: "B. Not (A), which is smaller".

Several are a list, "A, C", "(A) and (C)", "A、C", "A & C", or one word, "AC"; neither order nor repetition counts. A
gold answer is that in capitals only, and one word only in the alphabet's order: "ac" is a product, and "BAD" a word.
Of several lists in an answer the last counts, of what its last box holds where that is one.
"""

import re

from mmsearch_trl.rewards.final_answer import boxes, tidied


_LETTERS = "A-J"
_SPELLED = re.compile(rf"[(\[]?([{_LETTERS}])[)\].:、。,]*", re.IGNORECASE)
"""A text that is an option's letter and nothing else."""
_ITEM = re.compile(rf"(?:[(\[]([{_LETTERS}])[)\]][.:、]?|([{_LETTERS}])[.):、])\s*(?=\S)", re.IGNORECASE)
"""How an option's text begins."""
_NAMED = r"(?:option|choice|answer(?: is)?|选项?|答案[是为]?|应选|故选)\s*+(?::\s*+)?"
_ANY = re.compile(
    rf"[(\[]([{_LETTERS}{_LETTERS.lower()}])[)\]]"
    rf"|(?i:{_NAMED})[(\[]?([{_LETTERS}{_LETTERS.lower()}])(?![A-Za-z0-9'])"
    rf"|(?<![A-Za-z0-9\\])([B-HJ])(?![A-Za-z0-9'])"
    r"|(?<![A-Za-z0-9\\])([AI])(?![A-Za-z0-9'])(?!\s+(?!(?:is|was|because|since)\b)[a-z])"
)
_BARE = rf"[{_LETTERS}](?![A-Za-z0-9'])"
_JOINT = r"(?: ?[,;、&和与] ?(?:and )?| and )"
_SEVERAL = re.compile(
    rf"(?<![A-Za-z0-9\\])(?:[(\[]{_BARE}[)\]](?:(?:{_JOINT}| ?)[(\[]{_BARE}[)\]])+"
    rf"|[(\[]?(?:{_BARE}(?:(?:{_JOINT}| ){_BARE})+|[{_LETTERS}]{{2,10}}(?![A-Za-z0-9']))[)\]]?)"
)
"""Options' letters in a list, each in brackets or bare, or in one word."""
_SMALL = re.compile(_SEVERAL.pattern, re.IGNORECASE)
_NO_LETTER = re.compile(rf"\band\b|[^{_LETTERS}]", re.IGNORECASE)
_COMMAND = re.compile(r"\\[A-Za-z]+ ?[A-Za-z0-9]*")
"""LaTeX that makes something else of letters: a line over AB is a segment."""
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|boxed|fbox|bf|rm)\b|\\[,;!()\[\] ]|[${}*`\"]"
)


def plain(text: str) -> str:
    """A text without what LaTeX and Markdown put around a letter."""
    return " ".join(_WRAPPERS.sub(" ", tidied(text)).split())


def option_of(gold: str) -> tuple[str, str] | None:
    """The letter that a gold answer is, and the option's text behind it, "" for none; None where it is no option."""
    text = plain(gold)
    if alone := _SPELLED.fullmatch(text):
        return alone[1].upper(), ""
    if (item := _ITEM.match(text)) is not None:
        return (item[1] or item[2]).upper(), text[item.end() :]
    return None


def option_in(answer: str) -> str | None:
    """The letter that an answer chooses; None where it names none."""
    text = plain(answer)
    if (option := option_of(text)) is not None:
        return option[0]
    letters = [next(filter(None, match.groups())).upper() for match in _ANY.finditer(text)]
    return letters[-1] if letters else None


def options_of(gold: str) -> frozenset[str] | None:
    """The letters of the two or more options that a gold answer is; None where it is anything else."""
    text = plain(gold).removesuffix(".")
    letters = _NO_LETTER.sub("", text)
    if not _SEVERAL.fullmatch(text) or len(set(letters)) < 2:
        return None
    word = letters == text.strip("()[]")
    return frozenset(letters) if not word or list(letters) == sorted(set(letters)) else None


def options_in(answer: str) -> frozenset[str] | None:
    """The letters of the options that an answer lists; None where it lists none."""
    for part in (*boxes(tidied(answer))[-1:], answer):
        text = _COMMAND.sub(" ", plain(part)).strip(" .")
        if _SMALL.fullmatch(text):
            return frozenset(_NO_LETTER.sub("", text).upper())
        if found := _SEVERAL.findall(text):
            return frozenset(_NO_LETTER.sub("", found[-1]))
    return None
