"""What a search returns: typed hits, or a typed failure; never free text whose wording decides what happened.

A backend raises `SearchError`; the runtime turns it into an `Observation` with a `failure`, so that a tool that breaks
is a value that the rollout records and not an exception that ends a training step.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from PIL import Image


class Tool(StrEnum):
    IMAGE_SEARCH = "image_search"
    TEXT_SEARCH = "text_search"


class FailureKind(StrEnum):
    """Why a search gave no answer. All but `INVALID_QUERY` are the infrastructure's doing, not the policy's.

    After `QUOTA_SPENT` and `KEY_REFUSED` no later call can be answered either: a run that goes on teaches the policy
    that searching is useless.
    """

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    QUOTA_SPENT = "quota_spent"
    KEY_REFUSED = "key_refused"
    UNAVAILABLE = "unavailable"
    BAD_RESPONSE = "bad_response"
    BLOCKED = "blocked"
    TOO_LARGE = "too_large"
    NOT_CACHED = "not_cached"
    INVALID_QUERY = "invalid_query"


@dataclass(frozen=True, slots=True)
class Failure:
    kind: FailureKind
    message: str

    @property
    def infrastructure(self) -> bool:
        return self.kind is not FailureKind.INVALID_QUERY


class SearchError(Exception):
    """Raised by a backend that cannot answer; the message must hold no key and no page text.

    Args:
        retry_after: Seconds for which the backend asks not to be asked again.
    """

    def __init__(self, kind: FailureKind, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class ImageHit:
    """A page that shows the picture. `thumbnail` is None when it could not be had: never a made-up picture."""

    title: str
    url: str | None = None
    thumbnail: Image.Image | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TextHit:
    title: str
    text: str
    url: str | None = None
    score: float | None = None
    id: str | None = None


Hit = ImageHit | TextHit


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an image's decoded RGB pixels and size: the same picture has the same key however it was encoded."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """What an image search looks up: the picture, and the names under which a published cache may hold it."""

    image: Image.Image
    data_id: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class RawReply:
    """The reply of a tool with MMSearch-R1's own signature: ready-made text and its thumbnails.

    `text` holds one `<|vision_start|><|image_pad|><|vision_end|>` per image, as upstream's tools write it.
    """

    text: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The outcome of one tool call: hits (perhaps none), or a failure.

    Attributes:
        seconds: Wall time from the call to the outcome, waiting for a free slot included.
        cached: The answer came from the persistent cache.
        coalesced: An identical call was already in flight and its answer was shared.
        tries: How often the backend was asked for it; 0 where an answer was kept, or nothing was asked.
        bytes: Received for it, over all tries (`cost.py`).
        raw: Set instead of `hits` by tools that write their own reply (`search/upstream_tools.py`).
    """

    tool: Tool
    hits: tuple[Hit, ...] = ()
    failure: Failure | None = None
    raw: RawReply | None = None
    backend: str = ""
    seconds: float = 0.0
    cached: bool = False
    coalesced: bool = False
    tries: int = 0
    bytes: int = 0


Answer = Sequence[Hit] | RawReply
"""What a backend gives: hits, best first (none: "searched and found nothing"), or a reply it has written itself."""

QueryT = TypeVar("QueryT", contravariant=True)


class SearchBackend(Protocol[QueryT]):
    """One way to answer a query. `fingerprint` changes whenever the same query could get another answer.

    Of these a backend may say more, each with an attribute or method that others leave out:

    * `by_pixels = True`: an image backend whose answers depend on the pixels alone. Equal pictures share one call and
      one kept answer whatever the rows they come from are called.
    * `paid = True`: each call costs something, and is counted against `max_paid_calls`.
    * `async check()`: see that it is ready, at no cost; raises `SearchError`.
    * `async close()`: close the connections of the running event loop.
    """

    name: str
    fingerprint: str

    async def search(self, query: QueryT, k: int) -> Answer:
        """Return at most `k` hits, best first; an empty sequence means "searched and found nothing".

        Raises:
            SearchError: the backend could not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One line of the runtime's log, from which search metrics are computed.

    Of calls that shared one answer, only the first to get it bears its tries, bytes and price.

    Attributes:
        tries: How often the backend was asked.
        paid: Whether each try costs something.
        bytes: Received for it.
        price: Dollars that the tries are estimated to have cost.
    """

    tool: Tool
    seconds: float
    cached: bool
    coalesced: bool
    tries: int = 0
    paid: bool = False
    failure: FailureKind | None = None
    bytes: int = 0
    price: float = 0.0
