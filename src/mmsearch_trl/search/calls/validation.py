"""What a backend may hand to the rollout: checked in one place, because a backend may be anybody's code."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, Hit, ImageHit, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import shrink


_HIT_TYPES = {ActionKind.IMAGE_SEARCH: ImageHit, ActionKind.TEXT_SEARCH: TextHit}


def checked_answer(tool: ActionKind, answer: Answer, k: int, side: int | None = None) -> tuple[Hit, ...]:
    """The answer, cut to `k` hits, its images in RGB; a hit whose thumbnail cannot be used keeps its title only.

    Args:
        side: Pixels to which the longer side of a larger image is brought; None for any size.

    Raises:
        SearchError: `BAD_RESPONSE`: no hits, or hits of another kind.
    """
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise SearchError(FailureKind.BAD_RESPONSE, f"the backend returned {type(answer).__name__}, not hits")
    return tuple(_checked_hit(tool, hit, side) for hit in answer[:k])


def text_hits(answer: Answer) -> list[TextHit]:
    """The hits of a text backend that another backend asks.

    Raises:
        SearchError: `BAD_RESPONSE`: it gave something else.
    """
    checked = checked_answer(ActionKind.TEXT_SEARCH, answer, sys.maxsize)
    return [hit for hit in checked if isinstance(hit, TextHit)]


def _checked_hit(tool: ActionKind, hit: Hit, side: int | None) -> Hit:
    if not isinstance(hit, _HIT_TYPES[tool]):
        raise SearchError(FailureKind.BAD_RESPONSE, f"the backend returned a {type(hit).__name__} to {tool}")
    text = hit.title if isinstance(hit, ImageHit) else hit.title + hit.text
    if not isinstance(text, str):
        raise SearchError(FailureKind.BAD_RESPONSE, f"a hit's title is {type(hit.title).__name__}, not text")
    if not isinstance(hit, ImageHit) or hit.thumbnail is None:
        return hit
    try:
        image = load_image(hit.thumbnail)
    except UserError:  # the title is still worth having
        return replace(hit, thumbnail=None)
    return replace(hit, thumbnail=image if side is None else shrink(image, side))
