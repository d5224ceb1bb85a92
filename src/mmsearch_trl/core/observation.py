"""What a tool returns: typed hits, or a typed failure; never free text whose wording decides what happened."""

from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from mmsearch_trl.core.task import Task


class FailureKind(StrEnum):
    """Why a search gave no answer. All but `INVALID_QUERY` are the infrastructure's doing, not the policy's; that one
    is a search that cannot be made: without words, without an image, or with a tool that is not there.

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


@dataclass(frozen=True, slots=True)
class ImageHit:
    """A page that shows the image. `thumbnail` is None when it could not be had: never a made-up image."""

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


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """What an image search looks up: the image, and the names under which a published cache may hold it."""

    image: Image.Image
    data_id: str | None = None
    url: str | None = None

    @classmethod
    def of(cls, task: Task) -> "ImageQuery | None":
        """What an image search of a task looks up; None where there is no image."""
        return cls(task.images[0], data_id=task.id, url=task.image_url) if task.images else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The outcome of one tool call: hits (perhaps none), or a failure.

    Attributes:
        seconds: Wall time from the call to the outcome, waiting for a free slot included.
        cached: The answer came from the persistent cache.
        coalesced: An identical call was already in flight and its answer was shared.
        tries: How often the backend was asked for it; 0 where an answer was kept, or nothing was asked.
        bytes: Received for it, over all tries (`cost.py`).
    """

    tool: str
    hits: tuple[Hit, ...] = ()
    failure: Failure | None = None
    backend: str = ""
    seconds: float = 0.0
    cached: bool = False
    coalesced: bool = False
    tries: int = 0
    bytes: int = 0
