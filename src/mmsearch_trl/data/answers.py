"""Gold answers: those of a row that can be compared, the ground truth first.

Their shapes are those of `rewards/answers.py`. They are compared after a normalisation that is fixed by the published
rewards (`rewards/matching.py`) and of which articles and ASCII punctuation do not remain. What is nothing after it
would equal an empty answer, and be contained in every one; such an answer counts for nothing beside others, and a row
that has no other is refused.

Option letters are a case of their own. Where the row lists options that its question does not show, nobody could
answer with a letter: the option's text is the answer. Where the question shows them, a letter is an answer like any
other, but for the A, which is an article. The number of an option is refused: it may count from 0 or from 1.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.answers import accepted_answers, number_text, parsed
from mmsearch_trl.rewards.matching import normalize_answer


ANSWER_KEYS = ("answers", "answer", "golden_answers", "answer_aliases", "aliases", "alias", "candidate_answers")
"""Under these a row may hold its answers, several of them together; the ground truth under the first that it has."""

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_BULLET = re.compile(r"(?:^|\s)\(?[A-Z][).:]\s+")


def gold_answers(truth: Any, candidates: Any = None, options: Any = None, question: str = "") -> tuple[str, ...]:
    """Gold answers that can be compared, the ground truth first.

    Args:
        candidates: More of them: None, a list, an object, or either as JSON.
        options: What the question lets choose from, a list or an object by letter; None where it is open.

    Raises:
        UserError: something in it is of another kind, the ground truth is empty, or nothing of it can be compared.
    """
    golds = listed_answers(truth, candidates)
    if options is not None:
        golds = _by_text(golds, truth, _options(options), question)
    comparable = tuple(gold for gold in golds if normalize_answer(gold))
    lost = [gold for gold in golds if not normalize_answer(gold)]
    # Of several letters none is left out: the others are no other way to say it.
    if not comparable or (_is_letter(lost) and _is_letter(comparable)):
        raise UserError(
            f"the answer {(lost or golds)[0]!r:.80} cannot be scored: articles and punctuation do not count, so that "
            "nothing of it remains, and an empty answer would be right. Write it in words; of an option, its text"
        )
    return comparable


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What a rule asks of the gold answers of a row.

    Attributes:
        needed: Whether a row without one is bad.
        as_words: Whether they are compared as `gold_answers` says; otherwise they are taken as they are written.
        unusable: Of the answers of some rows, those that nothing could be scored by: their numbers, and why.
        check_columns: Refuses a row by what it holds beside question and answers, with a `UserError`.
        fingerprint: Names these two among those of other rules.
    """

    needed: bool = True
    as_words: bool = True
    unusable: Callable[[Sequence[Sequence[str]]], Mapping[int, str]] | None = None
    check_columns: Callable[[Mapping[str, Any]], None] | None = None
    fingerprint: str = ""

    def unchecked(self) -> "Scoring":
        """The same without asking the rule about rows."""
        return replace(self, unusable=None, check_columns=None)

    def golds(self, truth: Any, candidates: Any = None, options: Any = None, question: str = "") -> tuple[str, ...]:
        """The gold answers of a row; the arguments are those of `gold_answers`.

        Raises:
            UserError: there is none, or none that could be compared.
        """
        golds = self.texts(truth)
        if not self.needed and not any(gold.strip() for gold in golds):
            return ()
        if self.as_words:
            return gold_answers(truth, candidates, options, question)
        return listed_answers(golds, candidates, verbatim=True)

    def texts(self, cell: Any) -> tuple[str, ...]:
        """The answers of a cell. A text that looks like a list is one among words, and else perhaps an interval.

        Raises:
            UserError: the cell holds something else.
        """
        return accepted_answers(cell, verbatim=not self.as_words)


WORDS = Scoring()
"""Answers are needed, and compared as words."""


def listed_answers(truth: Any, candidates: Any = None, *, verbatim: bool = False) -> tuple[str, ...]:
    """All gold answers, whether they can be compared or not, the ground truth first.

    Raises:
        UserError: something in it is of another kind, or the ground truth is empty.
    """
    golds = [gold for gold in accepted_answers(truth, verbatim=verbatim) if gold.strip()]
    if not golds:
        raise UserError("the ground truth is empty: a row without a right answer can be neither trained nor scored")
    return (*golds, *(gold for gold in accepted_answers(None, candidates, verbatim=verbatim) if gold.strip()))


def _options(value: Any) -> dict[str, str]:
    """The text of each option by its letter or label."""
    value = parsed(value) if isinstance(value, str) else value
    if isinstance(value, str):
        value = [part for part in _BULLET.split(value) if part.strip()]
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        value = dict(zip(value["label"], value["text"], strict=False))  # ARC
    if isinstance(value, list | tuple):
        value = dict(zip(ascii_uppercase, value, strict=False))
    texts = value.items() if isinstance(value, Mapping) else ()
    texts = ((str(label).upper(), number_text(text) or text) for label, text in texts)
    return {label: _BULLET.sub("", text, count=1).strip() for label, text in texts if isinstance(text, str)}


def _by_text(golds: tuple[str, ...], truth: Any, options: Mapping[str, str], question: str) -> tuple[str, ...]:
    """The answers with letters of options that the question does not show replaced by their texts.

    Raises:
        UserError: an answer is the number of an option, or may be.
    """
    texts = [text.casefold() for text in options.values()]
    while isinstance(truth, list | tuple) and truth:
        truth = truth[0]
    gold = golds[0].strip()
    place = int(gold) if gold.isdecimal() and gold not in options else len(texts) + 1
    # A text that is an option's is that option; a bare number among numbers may be its place as well.
    meant = gold.casefold() in texts and not (isinstance(truth, int) and texts[place : place + 1] not in ([], [gold]))
    if place <= len(texts) and not meant:
        raise UserError(f"the answer {gold!r} may be the number of one of {len(texts)} options: write its text")
    if all(text in question.casefold() for text in texts):
        return golds
    return tuple(_option(gold, options, texts) for gold in golds)


def _option(gold: str, options: Mapping[str, str], texts: list[str]) -> str:
    letter = _LETTER.fullmatch(gold.strip())
    label = letter[1].upper() if letter else gold.strip()
    return gold if gold.strip().casefold() in texts else options.get(label, gold)


def _is_letter(golds: Sequence[str]) -> bool:
    return bool(golds) and all(_LETTER.fullmatch(gold.strip()) for gold in golds)
