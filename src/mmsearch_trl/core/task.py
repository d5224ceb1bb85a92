"""A task: one question, perhaps about images, with everything that tools and rewards may need to answer it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from PIL import Image

from mmsearch_trl.core.message import Message


_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question.

    Attributes:
        id: Unique within its data set (`data_id` of the FVQA release).
        question: The bare question, without prompt text or image placeholder; of a conversation, what the user said
            last.
        images: RGB images, in the order in which the model sees them; image search looks up the first.
        messages: The conversation to be continued, which shows all of `images`; empty where the images and the
            question are all of it.
        answers: Accepted answers; the first is the ground truth, the others are candidate answers.
        data_source: Name of the data set the row comes from; metrics are grouped by it.
        image_url: Public address of the first image, where the data set has one.
        category: `search_free`, `search_required` or None; for reports only, never shown to the model.
        extra: Further columns, handed to reward functions unchanged.
    """

    id: str
    question: str
    images: tuple[Image.Image, ...] = ()
    messages: tuple[Message, ...] = ()
    answers: tuple[str, ...] = ()
    data_source: str = ""
    image_url: str | None = None
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
