"""An answer as bytes: JSON, then the thumbnails as PNG or JPEG, under a CRC. Nothing is ever unpickled."""

import json
import struct
import zlib
from typing import Any

from mmsearch_trl.core.observation import Hit, ImageHit, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import encode_thumbnail


FORMAT = 2
_HEADER = struct.Struct("<II")


def pack(answer: Answer) -> bytes:
    """An answer as bytes: CRC, length of the JSON, JSON, images end to end in the order of the hits."""
    rows: list[list[Any]] = []
    images: list[bytes] = []
    for hit in answer:
        if isinstance(hit, ImageHit):
            images.append(encode_thumbnail(hit.thumbnail) if hit.thumbnail else b"")
            rows.append(["image", hit.title, hit.url, hit.score, len(images[-1]) or None])
        else:
            rows.append(["text", hit.title, hit.url, hit.score, [hit.text, hit.id]])
    text = json.dumps({"hits": rows}).encode()
    body = text + b"".join(images)
    return _HEADER.pack(zlib.crc32(body), len(text)) + body


def unpack(entry: bytes) -> Answer:
    """The answer again.

    Raises:
        Exception: whatever a damaged entry makes the decoders raise; `ValueError` where its checksum does not match,
            or where it holds what earlier versions took for an answer as well (a tool's ready-made text).
    """
    crc, length = _HEADER.unpack_from(entry)
    body = entry[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise ValueError("the checksum does not match")
    values = json.loads(body[:length])
    if "hits" not in values:
        raise ValueError("it is a ready-made reply, as earlier versions kept them")
    hits: list[Hit] = []
    place = length
    for kind, title, url, score, rest in values["hits"]:
        if kind == "text":
            hits.append(TextHit(title=title, text=rest[0], url=url, score=score, id=rest[1]))
        else:
            thumbnail = None if rest is None else load_image(body[place : place + rest])
            place += rest or 0
            hits.append(ImageHit(title=title, url=url, thumbnail=thumbnail, score=score))
    return tuple(hits)
