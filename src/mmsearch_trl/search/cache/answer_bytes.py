"""An answer as bytes: JSON, then the thumbnails as PNG or JPEG, under a CRC. Nothing is ever unpickled."""

import json
import struct
import zlib
from typing import Any

from PIL import Image

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import Hit, ImageHit, TextHit
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.calls.validation import MAX_HITS, checked_hit
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import encode_thumbnail


FORMAT = 2
_HEADER = struct.Struct("<II")


class DamagedEntry(ValueError):
    """Bytes that `pack` did not make: torn, changed, or another program's."""


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
        DamagedEntry: there is none; or it is one that no backend could have given (`calls/validation.py`), or one of
            earlier versions, which kept a tool's ready-made text as well.
    """
    if len(entry) < _HEADER.size:
        raise DamagedEntry("it is too short")
    crc, length = _HEADER.unpack_from(entry)
    body = entry[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise DamagedEntry("the checksum does not match")
    try:
        values = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise DamagedEntry(f"no JSON: {error}") from error
    rows, place = _rows(values), length
    hits: list[Hit] = []
    for row in rows:
        match row:
            case ["text", title, url, score, [text, name]]:
                hits.append(TextHit(title=title, text=text, url=url, score=score, id=name))
            case ["image", title, url, score, None]:
                hits.append(ImageHit(title=title, url=url, score=score))
            case ["image", title, url, score, int(size)] if 0 < size <= len(body) - place:
                hits.append(
                    ImageHit(title=title, url=url, thumbnail=_thumbnail(body[place : place + size]), score=score)
                )
                place += size
            case _:
                raise DamagedEntry("a row is no hit, or its image is missing")
    if place != len(body):
        raise DamagedEntry("it holds more than its hits")
    try:
        checked = tuple(map(checked_hit, hits))
    except SearchError as error:
        raise DamagedEntry(error.failure.message) from error
    if len({type(hit) for hit in checked}) > 1:
        raise DamagedEntry("it holds hits of both kinds")
    return checked


def _rows(values: Any) -> list[Any]:
    match values:
        case {"hits": list(rows)}:
            if len(rows) > MAX_HITS:
                raise DamagedEntry(f"it holds {len(rows)} hits")
            return rows
        case {"text": _}:
            raise DamagedEntry("it is a ready-made reply, as earlier versions kept them")
    raise DamagedEntry("it holds no hits")


def _thumbnail(data: bytes) -> Image.Image:
    try:
        return load_image(data)
    except UserError as error:
        raise DamagedEntry(str(error)) from error
