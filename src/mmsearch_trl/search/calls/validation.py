"""What a rollout, a client and a cache are handed: checked at this one door, coming from a backend or from the cache.

A backend may be anybody's code, and a cache anybody's file. A hit whose text, address, score or id is of another type
is a failure of the search and never passed on half right; a thumbnail that cannot be used leaves the title.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, Hit, ImageHit, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import shrink


MAX_HITS = 1000
"""Of an answer, however many were asked for."""
MAX_CHARS = 1_000_000
"""Of a hit's title, text or address."""
_HIT_TYPES = {ActionKind.IMAGE_SEARCH: ImageHit, ActionKind.TEXT_SEARCH: TextHit}

HitT = TypeVar("HitT", ImageHit, TextHit)


def checked_answer(tool: ActionKind, answer: Answer, k: int, side: int | None = None) -> tuple[Hit, ...]:
    """The answer, cut to `k` hits, its images in RGB; a hit whose thumbnail cannot be used keeps its title only.

    Args:
        side: Pixels to which the longer side of a larger image is brought; None for any size.

    Raises:
        SearchError: `BAD_RESPONSE`: no hits, hits of another kind, or one with a field of another type.
    """
    return _checked(_HIT_TYPES[tool], answer, k, side)


def text_hits(answer: Answer, k: int = MAX_HITS) -> list[TextHit]:
    """The hits of a text backend that another part asks.

    Raises:
        SearchError: `BAD_RESPONSE`: it gave something else.
    """
    return list(_checked(TextHit, answer, k))


def image_hits(answer: Answer, k: int = MAX_HITS) -> list[ImageHit]:
    """The hits of an image backend, likewise."""
    return list(_checked(ImageHit, answer, k))


def _checked(kind: type[HitT], answer: Answer, k: int, side: int | None = None) -> tuple[HitT, ...]:
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise _bad(f"the backend returned {type(answer).__name__}, not hits")
    hits = [checked_hit(hit) for hit in answer[: max(0, min(k, MAX_HITS))]]
    if other := next((hit for hit in hits if not isinstance(hit, kind)), None):
        raise _bad(f"the backend returned a {type(other).__name__} where a {kind.__name__} is needed")
    return tuple(_with_image(hit, side) if isinstance(hit, ImageHit) else hit for hit in hits)  # pyright: ignore[reportReturnType]


def checked_hit(hit: Any) -> Hit:
    """The hit, its score a plain number.

    Raises:
        SearchError: `BAD_RESPONSE`: it is none, or a field is of another type.
    """
    match hit:
        case TextHit():
            text, name = _text(hit.text, "text"), None if hit.id is None else _text(hit.id, "id")
            checked = replace(hit, text=text, id=name)
        case ImageHit():
            if hit.thumbnail is not None and not isinstance(hit.thumbnail, Image.Image):
                raise _bad(f"a hit's thumbnail is {type(hit.thumbnail).__name__}, not an image")
            checked = hit
        case _:
            raise _bad(f"the backend returned a {type(hit).__name__}, not a hit")
    url = None if hit.url is None else _text(hit.url, "address")
    return replace(checked, title=_text(hit.title, "title"), url=url, score=_score(hit.score))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _bad(f"a hit's {what} is {type(value).__name__}, not text")
    if len(value) > MAX_CHARS:
        raise _bad(f"a hit's {what} has {len(value)} characters")
    return value


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise _bad(
            f"a hit's score is {f'{value}' if isinstance(value, float) else type(value).__name__}, not a number"
        )
    return float(value)


def _with_image(hit: ImageHit, side: int | None) -> ImageHit:
    if hit.thumbnail is None:
        return hit
    try:
        image = load_image(hit.thumbnail)
    except UserError:  # the title is still worth having
        return replace(hit, thumbnail=None)
    return replace(hit, thumbnail=image if side is None else shrink(image, side))


def _bad(message: str) -> SearchError:
    return SearchError(FailureKind.BAD_RESPONSE, message)
