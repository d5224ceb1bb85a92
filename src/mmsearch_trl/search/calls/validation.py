"""What a backend may hand to the rollout: checked in one place, because a backend may be anybody's code."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, Hit, ImageHit, RawReply, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import shrink


IMAGE_PAD = "<|image_pad|>"
IMAGE_PLACEHOLDER = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
"""Where an image stands in a `RawReply`."""

_HIT_TYPES = {ActionKind.IMAGE_SEARCH: ImageHit, ActionKind.TEXT_SEARCH: TextHit}


def checked_answer(tool: ActionKind, answer: Answer, k: int, side: int | None = None) -> tuple[Hit, ...] | RawReply:
    """The answer, cut to `k` hits, its images in RGB; a hit whose thumbnail cannot be used keeps its title only.

    Args:
        side: Pixels to which the longer side of a larger image is brought; None for any size.

    Raises:
        SearchError: `BAD_RESPONSE`: hits of another kind, or a reply whose placeholders and images differ in number.
    """
    if isinstance(answer, RawReply):
        return _checked_reply(answer, side)
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise SearchError(FailureKind.BAD_RESPONSE, f"the backend returned {type(answer).__name__}, not hits")
    return tuple(_checked_hit(tool, hit, side) for hit in answer[:k])


def text_hits(answer: Answer) -> list[TextHit]:
    """The hits of a text backend that another backend asks.

    Raises:
        SearchError: `BAD_RESPONSE`: it gave something else.
    """
    checked = checked_answer(ActionKind.TEXT_SEARCH, answer, sys.maxsize)
    if isinstance(checked, RawReply):
        raise SearchError(FailureKind.BAD_RESPONSE, "the backend returned a ready-made reply, not hits")
    return [hit for hit in checked if isinstance(hit, TextHit)]


def _checked_hit(tool: ActionKind, hit: Hit, side: int | None) -> Hit:
    if not isinstance(hit, _HIT_TYPES[tool]):
        raise SearchError(FailureKind.BAD_RESPONSE, f"the backend returned a {type(hit).__name__} to {tool}")
    text = hit.title if isinstance(hit, ImageHit) else hit.title + hit.text
    if not isinstance(text, str):
        raise SearchError(FailureKind.BAD_RESPONSE, f"a hit's title is {type(hit.title).__name__}, not text")
    if isinstance(hit, ImageHit) and hit.thumbnail is not None:
        return replace(hit, thumbnail=_usable_or_none(hit.thumbnail, side))
    return hit


def _usable_or_none(thumbnail: Image.Image, side: int | None) -> Image.Image | None:
    try:
        return _sized(thumbnail, side)
    except ValueError:
        return None


def _sized(image: Image.Image, side: int | None) -> Image.Image:
    rgb = load_image(image)
    return rgb if side is None else shrink(rgb, side)


def _checked_reply(reply: RawReply, side: int | None) -> RawReply:
    places = reply.text.count(IMAGE_PLACEHOLDER)
    if places != len(reply.images) or reply.text.count(IMAGE_PAD) != places:
        message = f"the reply has {places} image placeholders and {len(reply.images)} images"
        raise SearchError(FailureKind.BAD_RESPONSE, message)
    try:
        return RawReply(reply.text, tuple(_sized(image, side) for image in reply.images))
    except ValueError as error:
        raise SearchError(FailureKind.BAD_RESPONSE, f"an image of the reply cannot be used: {error}") from None
