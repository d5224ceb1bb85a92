"""Gold answers, from every shape in which data sets hold them: none is dropped, and nothing else becomes one.

An answer is a text or a number. Several are a list, nested or not; an object that names them (TriviaQA's
`{"value": ..., "aliases": [...]}`, SQuAD's `{"text": [...]}`, Search-R1's `{"target": [...]}`); or either of the two
written as a text, in JSON or as Python prints a list. None, NaN and blank texts hold nothing.

Answers are compared after a normalisation that is fixed by the published rewards (`rewards/matching.py`) and of which
articles and ASCII punctuation do not remain. What is nothing after it would equal an empty answer, and be contained in
every one; such an answer counts for nothing beside others, and a row that has no other is refused.

Option letters are a case of their own. Where the row lists options that its question does not show, nobody could
answer with a letter: the option's text is the answer. Where the question shows them, a letter is an answer like any
other, but for the A, which is an article. The number of an option is refused: it may count from 0 or from 1.
"""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from string import ascii_uppercase
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.matching import normalize_answer


ANSWER_KEYS = ("answers", "answer", "golden_answers", "answer_aliases", "aliases", "alias", "candidate_answers")
"""Under these a row may hold its answers, several of them together; the ground truth under the first that it has."""

_NAMED = (
    *("value", "answer", "target", "text", "ground_truth", "name", "label", "aliases", "answers", "golden_answers"),
    *("answer_aliases", "alias", "candidate_answers", "normalized_value", "normalized_aliases"),
)
"""Keys of an object under which answers stand, the ground truth first."""
_ABOUT = frozenset(
    {"type", "answer_type", "style", "answer_start", "answer_id", "answer_confidence", "raw_answer", "id", "lang"}
    | {"matched_wiki_entity_name", "normalized_matched_wiki_entity_name"}
)
"""Keys of an object that say something about an answer, and are none."""
_DEEPEST = 16
_HALF = re.compile("[\ud800-\udfff]")
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


def listed_answers(truth: Any, candidates: Any = None) -> tuple[str, ...]:
    """All gold answers, whether they can be compared or not, the ground truth first.

    Raises:
        UserError: something in it is of another kind, or the ground truth is empty.
    """
    golds = tuple(_texts(truth, "the ground truth"))
    if not golds:
        raise UserError("the ground truth is empty: a row without a right answer can be neither trained nor scored")
    more = _parsed(candidates) if isinstance(candidates, str) else candidates
    if isinstance(more, str) and more.strip():
        raise UserError(f"candidate_answers is a string but not a JSON list: {more!r:.80}")
    if more is not None and not isinstance(more, str | list | tuple | Mapping):
        raise UserError(f"candidate_answers must be a list or a JSON list, got {type(more).__name__}")
    return (*golds, *_texts(more, "candidate_answers"))


def _texts(value: Any, name: str, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        raise UserError(f"{name}: lists in lists, more than {_DEEPEST} deep")
    value = _parsed(value) if isinstance(value, str) else value
    if isinstance(value, str):
        if _HALF.search(value):
            raise UserError(f"{name} holds half of a surrogate pair, which is no text: {value!r:.80}")
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        for part in _named(value, name):
            yield from _texts(part, name, depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, name, depth + 1)
    elif value is not None and (number := number_text(value)) is not None:
        yield number
    elif value is not None and not _is_nan(value):
        kind = f"{value!r}" if isinstance(value, bool | float) else f"a {type(value).__name__}"
        raise UserError(f"{name} must be a text, a number, or a list or object of these, got {kind:.80}")


def number_text(value: Any) -> str | None:
    """A number as a person writes it, `1969.0` as `1969`; None where it is no number that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | Decimal) and math.isnan(value)


def _named(value: Mapping[str, Any], name: str) -> list[Any]:
    unknown = [key for key, part in value.items() if key not in _NAMED and key not in _ABOUT and part is not None]
    found = [value[key] for key in _NAMED if key in value]
    if unknown or not found:
        raise UserError(
            f"{name} is an object with the key {', '.join(map(str, unknown or value)) or 'none'}, and it is not known "
            "whether that holds an answer: write a list, or {'value': ..., 'aliases': [...]}"
        )
    return found


def _parsed(text: str) -> Any:
    """The list or object that a text is, in JSON or as Python prints it; any other text as it is."""
    inner = text.strip()
    if (inner[:1], inner[-1:]) not in (("[", "]"), ("{", "}")):
        return text
    try:
        return json.loads(inner)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(inner)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = None
    # Python joins 'a' 'b', as numpy prints two entries, to 'ab': only what Python itself prints is taken.
    if repr(value) == inner:
        return value
    if inner[1:].lstrip()[:1] in ("'", '"'):
        raise UserError(f"{inner!r:.80} looks like a list of answers, and is neither JSON nor Python's own form")
    return text


def _options(value: Any) -> dict[str, str]:
    """The text of each option by its letter or label."""
    value = _parsed(value) if isinstance(value, str) else value
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
