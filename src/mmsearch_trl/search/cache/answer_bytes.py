"""An answer as bytes: JSON, then the thumbnails as PNG or JPEG, under a CRC. Nothing is ever unpickled."""

import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import Hit, ImageHit, RawReply, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import encode_thumbnail


FORMAT = 2
_HEADER = struct.Struct("<II")


def pack(answer: Answer) -> bytes:
    """An answer as bytes: CRC, length of the JSON, JSON, images end to end."""
    images: list[bytes] = []

    def place(image: Image.Image | None) -> int | None:
        """The length of the image's bytes, which are read back in the order of the JSON."""
        if image is None:
            return None
        images.append(encode_thumbnail(image))
        return len(images[-1])

    if isinstance(answer, RawReply):
        values: dict[str, Any] = {"text": answer.text, "images": [place(image) for image in answer.images]}
    else:
        values = {"hits": [_hit_values(hit, place(getattr(hit, "thumbnail", None))) for hit in answer]}
    text = json.dumps(values).encode()
    body = text + b"".join(images)
    return _HEADER.pack(zlib.crc32(body), len(text)) + body


def _hit_values(hit: Hit, thumbnail: int | None) -> list[Any]:
    if isinstance(hit, ImageHit):
        return ["image", hit.title, hit.url, hit.score, thumbnail]
    return ["text", hit.title, hit.url, hit.score, [hit.text, hit.id]]


def unpack(entry: bytes) -> Answer:
    """The answer again.

    Raises:
        Exception: whatever a damaged entry makes the decoders raise; `ValueError` where its checksum does not match.
    """
    crc, length = _HEADER.unpack_from(entry)
    body = entry[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise UserError("the checksum does not match")
    values = json.loads(body[:length])
    images = _Images(body[length:])
    if "hits" not in values:
        return RawReply(values["text"], tuple(images.take(values["images"])))
    return tuple(_hit(kind, title, url, score, rest, images) for kind, title, url, score, rest in values["hits"])


def _hit(kind: str, title: str, url: str | None, score: float | None, rest: Any, images: "_Images") -> Hit:
    if kind == "text":
        return TextHit(title=title, text=rest[0], url=url, score=score, id=rest[1])
    thumbnail = None if rest is None else next(iter(images.take([rest])))
    return ImageHit(title=title, url=url, thumbnail=thumbnail, score=score)


class _Images:
    """Reads images that lie end to end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, lengths: Iterable[int]) -> Iterable[Image.Image]:
        for length in lengths:
            start, self._offset = self._offset, self._offset + length
            yield load_image(self._data[start : self._offset])
