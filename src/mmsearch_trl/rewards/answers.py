"""Accepted answers, from every shape in which data sets hold them: none is dropped, and nothing else becomes one.

An answer is a text or a number. Several are a list, nested or not; an object that names them (TriviaQA's
`{"value": ..., "aliases": [...]}`, SQuAD's `{"text": [...]}`, Search-R1's `{"target": [...]}`); or either of the two
written as a text, in JSON or as Python prints a list. None and NaN hold nothing.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from numbers import Integral
from typing import Any

from mmsearch_trl.core.errors import UserError


_NAMED = (
    *("value", "answer", "target", "text", "ground_truth", "name", "label", "aliases", "answers", "golden_answers"),
    *("answer_aliases", "alias", "candidate_answers", "normalized_value", "normalized_aliases"),
)
"""Keys of an object under which answers stand, the ground truth first."""
_ABOUT = frozenset(
    {"type", "answer_type", "style", "raw_answer", "id", "answer_id", "entity_id", "wikidata_id", "qid", "index"}
    | {"start", "end", "answer_start", "answer_end", "offset", "score", "confidence", "answer_confidence"}
    | {"lang", "language", "source", "url", "matched_wiki_entity_name", "normalized_matched_wiki_entity_name"}
)
"""Keys of an object that say something about an answer, and are none."""
_DEEPEST = 16
_HALF = re.compile("[\ud800-\udfff]")


def accepted_answers(ground_truth: Any, candidates: Any = None, *, verbatim: bool = False) -> tuple[str, ...]:
    """Join a ground truth and its candidate answers into one tuple, ground truth first; the arguments are not changed.

    Args:
        candidates: More of them: None, a list, an object, or either as JSON.
        verbatim: A text is one answer as it stands, also where it looks like a list: `[1, 2]` is an interval.

    Raises:
        UserError: something in them is of another kind, so that it is not known whether it is an answer.
    """
    if verbatim:
        return (
            *_texts(ground_truth, "the ground truth", verbatim=True),
            *_texts(candidates, "candidate_answers", verbatim=True),
        )
    more = parsed(candidates) if isinstance(candidates, str) else candidates
    if isinstance(more, str) and more.strip():
        raise UserError(f"candidate_answers is a string but not a JSON list: {more!r:.80}")
    if more is not None and not isinstance(more, Iterable):
        raise UserError(f"candidate_answers must be a list or a JSON list, got {type(more).__name__}")
    return (*_texts(ground_truth, "the ground truth"), *_texts(more, "candidate_answers"))


def _texts(value: Any, name: str, depth: int = 0, *, verbatim: bool = False) -> Iterator[str]:
    if depth > _DEEPEST:
        raise UserError(f"{name}: lists in lists, more than {_DEEPEST} deep")
    inner = parsed(value) if isinstance(value, str) and not verbatim else value
    # A text that is an object of other keys is that text: an answer may be a piece of JSON.
    if not (isinstance(value, str) and isinstance(inner, Mapping) and inner.keys().isdisjoint(_NAMED)):
        value = inner
    if isinstance(value, str):
        if _HALF.search(value):
            raise UserError(f"{name} holds half of a surrogate pair, which is no text: {value!r:.80}")
        yield value
    elif isinstance(value, Mapping):
        for part in _named(value, name):
            yield from _texts(part, name, depth + 1, verbatim=verbatim)
    elif isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        for part in value:
            yield from _texts(part, name, depth + 1, verbatim=verbatim)
    elif (number := number_text(value)) is not None:
        yield number
    elif not is_missing(value):
        kind = f"{value!r}" if isinstance(value, bool | float) else f"a {type(value).__name__}"
        raise UserError(f"{name} must be a text, a number, or a list or object of these, got {kind:.80}")


def number_text(value: Any) -> str | None:
    """A number as a person writes it, `1969.0` as `1969`; None where it is no number that is finite."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, float | Decimal) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(value)


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, or NaN as pandas writes it."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def _named(value: Mapping[str, Any], name: str) -> list[Any]:
    unknown = [key for key, part in value.items() if key not in _NAMED and key not in _ABOUT and part is not None]
    found = [value[key] for key in _NAMED if key in value]
    if unknown or not found:
        raise UserError(
            f"{name} is an object with the key {', '.join(map(str, unknown or value)) or 'none'}, and it is not known "
            "whether that holds an answer: write a list, or {'value': ..., 'aliases': [...]}"
        )
    return found


def parsed(text: str) -> Any:
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
