"""Which images a row has, and what the cell of an image is: bytes, a path, a data URI, base64, or an address.

What a text is, is told before it is made a path: base64 of a JPEG begins with a slash.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes
from urllib.request import url2pathname

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.answers import ANSWER_KEYS
from mmsearch_trl.data.pixels import PixelLimits


class ImageAddress(str):
    """Of an image that has to be fetched."""


PlainImage = bytes | Path | Image.Image | ImageAddress


@dataclass(frozen=True, slots=True)
class BoundedImage:
    """An image with limits of its own, `data/pixels.py`."""

    source: PlainImage
    limits: PixelLimits


ImageSource = PlainImage | BoundedImage


def unbounded(source: ImageSource) -> PlainImage:
    """Where an image comes from, whatever it is brought to."""
    return source.source if isinstance(source, BoundedImage) else source


IMAGE_KEYS = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_files", "img", "imgs", "img_path"),
    "img_paths",
)
"""Under one of these a row holds its images."""

_WORDS = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"))
_NAMES_ONE = re.compile(r"^data:image/|\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?|heic|avif)$", re.IGNORECASE)
_TEXT_KEYS = frozenset(("question", "turns", *ANSWER_KEYS))
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"RIFF")
_BASE64_OF_THEM = ("iVBORw0KGg", "/9j/", "_9j_", "R0lGOD", "UklGR")
_LONGEST_PATH, _LONGEST_NAME = 4096, 255


def row_images(
    cells: Mapping[str, Any], folder: Path, column: str | None = None, *, ignored: Collection[str] = ()
) -> tuple[PlainImage, ...]:
    """The images of a row of named values; none where it has none.

    Args:
        folder: Where paths start.
        column: The one that holds them; None for the first of `IMAGE_KEYS` that does.
        ignored: Columns that are known to hold something else.

    Raises:
        UserError: a cell holds no image, or the row has none where one is looked for and has another key that seems
            to hold one. `"image": null` says that there is none.
    """
    known = [column] if column is not None else [key for key in IMAGE_KEYS if key in cells]
    given = [key for key in known if cells.get(key) not in (None, "", [])]
    if not given:
        if not known:
            _check_forgotten(cells, ignored)
        return ()
    if len(given) > 1 and "image" not in given:
        raise UserError(f"the keys {' and '.join(given)} all name images: keep one of them")
    value = _listed(cells[given[0]])
    return tuple(image_source(image, folder) for image in (value if isinstance(value, list) else [value]))


def _listed(value: Any) -> Any:
    """A list that is written as a text, as files without lists have it."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        written = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return written if isinstance(written, list) else value


def image_source(value: Any, folder: Path) -> PlainImage:
    """An image cell as something that can be opened: encoded bytes, a path (from `folder`), or an image.

    Args:
        value: Bytes, an image, a path, a `file://` or data URI, an address, base64, or an object that holds one of
            these.

    Raises:
        UserError: it is none of these, or holds nothing.
    """
    if isinstance(value, Mapping):
        keys = ("bytes", "path", "image", "image_url", "url")
        inner = next((value[key] for key in keys if value.get(key)), None)
        if isinstance(inner, Mapping) and isinstance(inner.get("url"), str):
            inner = inner["url"]
        value = None if isinstance(inner, Mapping) else inner
    if isinstance(value, bytes | Image.Image) and value:
        return value
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, str) and value.strip():
        return _named_by(value, folder)
    found = "nothing" if value is None or value in ("", b"") else type(value).__name__
    raise UserError(f"no image: expected encoded bytes, a path or an image, got {found}")


def _named_by(text: str, folder: Path) -> bytes | Path | ImageAddress:
    if text[:5].lower() == "data:":
        return _of_data_uri(text)
    if scheme := _SCHEME.match(text):
        if scheme[1].lower() == "file":
            return folder / url2pathname(unquote(text[len(scheme[0]) :]).removeprefix("localhost"))
        if scheme[1].lower() in ("http", "https"):
            return ImageAddress(text)
        raise UserError(f"no image: an address of {scheme[1][:20]}://, which nobody here fetches: name a file")
    if text.startswith(_BASE64_OF_THEM) and (decoded := _of_base64(text)) and decoded.startswith(_SIGNATURES):
        return decoded
    encoded = text.encode("utf-8", "surrogatepass")
    if b"\0" in encoded or len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise UserError(
            f"no image: a text of {len(text)} characters that is neither a path nor a picture in base64: {text!r:.60}"
        )
    return folder / text


def _of_data_uri(text: str) -> bytes:
    kind, comma, content = text.partition(",")
    encoded = kind.lower().rstrip().endswith(";base64")
    data = (_of_base64(unquote(content)) if encoded else unquote_to_bytes(content)) if comma else None
    if not data:
        raise UserError(f"no image: a data URI that is empty or damaged: {text!r:.60}")
    return data


def _of_base64(text: str) -> bytes | None:
    letters = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_forgotten(cells: Mapping[str, Any], ignored: Collection[str]) -> None:
    for key, value in cells.items():
        if value and key not in _TEXT_KEYS and key not in ignored and (seems_image(key) or _names_image(value)):
            raise UserError(
                f"the row has no image, and {key!r} seems to name one: an image stands under 'image' "
                "('image': null for a question without one)"
            )


def _names_image(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return any(isinstance(part, str) and _NAMES_ONE.search(part) for part in parts)


@lru_cache(1024)
def seems_image(key: str) -> bool:
    """Whether one of the words of a key is an image: `photo_url`, `imagePath`, `IMG-1`."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", key)
    return any(word.lower() in _WORDS for word in words)
