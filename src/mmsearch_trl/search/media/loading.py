"""Opens an image from anywhere as RGB, or says why it cannot be opened.

Every image that enters the program (data set rows, index sources, cached thumbnails) comes through `load_image`, so
that a hostile or odd file is refused in one place: only four raster formats are tried (Pillow's default would start
Ghostscript for a PostScript file), the size is read from the header before any pixel is decoded (a 9 KB PNG can hold
81 megapixels), a JPEG is decoded as often as its scans are many and may have so many, only the first frame is decoded,
and a truncated file is an error, never an image with a grey end.

The largest image takes half a gigabyte for a moment, and images that are decoded at a time, on whatever threads, have
so many pixels together. What a search brings from strangers is decoded elsewhere (`search/calls/image_decoder.py`).
"""

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmsearch_trl.core.errors import UserError


FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

MAX_PIXELS = 25_000_000
"""Largest image that is decoded; 100 MB of RGB, as Pillow holds it."""
PIXELS_AT_A_TIME = 2 * MAX_PIXELS
"""Of all images that one process decodes; further ones wait."""
MAX_SCANS = 64
"""Of a JPEG: progressive ones have about ten, and each goes over all of the image again."""

_SCAN = b"\xff\xda"

ImageSource = bytes | bytearray | memoryview | str | Path | Mapping[str, Any] | Image.Image


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open `source` as an RGB image: first frame, turned upright by its EXIF tag, transparency shown on white.

    Args:
        source: Encoded bytes, a path, a mapping with `bytes` or `path` (as the datasets library stores an image), or
            a Pillow image.
        max_pixels: Refuse an image with more pixels than this.

    Raises:
        UserError: `source` is not a readable image; the message says why.
    """
    image = source if isinstance(source, Image.Image) else _open(_encoded(source))
    if image.width * image.height > max_pixels:
        raise UserError(f"the image has {image.width}x{image.height} pixels, more than the limit of {max_pixels}")
    if image.width == 0 or image.height == 0:
        raise UserError(f"the image is empty ({image.width}x{image.height})")
    with _budget.taking(image.width * image.height):
        try:
            image.load()
        # Decoders raise almost anything on a damaged file: OSError, SyntaxError, struct.error, zlib.error, IndexError.
        except Exception as error:
            raise UserError(f"the image cannot be decoded: {error or type(error).__name__}") from error
        return _to_rgb(_upright(image))


class _Budget:
    """Lets as many pixels be decoded at a time as there may be, and any image alone."""

    def __init__(self, pixels: int) -> None:
        self._most, self._taken = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_budget = _Budget(PIXELS_AT_A_TIME)


def _forget_other_threads() -> None:
    """What the threads of the process that forked have taken, they do not give back here."""
    global _budget
    _budget = _Budget(PIXELS_AT_A_TIME)


os.register_at_fork(after_in_child=_forget_other_threads)


def _encoded(source: bytes | bytearray | memoryview | str | Path | Mapping[str, Any]) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Mapping):
        inner = source.get("bytes") or source.get("path")
        if not isinstance(inner, bytes | bytearray | memoryview | str | Path):
            raise UserError(f"an image mapping needs 'bytes' or 'path', it has {sorted(map(str, source))}")
        return _encoded(inner)
    if not isinstance(source, str | Path):
        raise UserError(f"an image must be bytes, a path, a mapping or a PIL image, not {type(source).__name__}")
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        raise UserError(f"an image must be a file or bytes, not the address {source[:80]!r}: download it first")
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"the image file {str(source)!r} cannot be read: {reason}") from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise UserError("the image is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"the image has too many pixels: {error}") from error
    except Exception as error:
        raise UserError(f"the image ({len(data)} bytes) is not a readable {'/'.join(FORMATS)} file") from error
    # Within a scan no 0xFF is followed by anything but zero and restart marks, so that this counts markers.
    if image.format == "JPEG" and (scans := data.count(_SCAN)) > MAX_SCANS:
        raise UserError(f"the image is a JPEG of {scans} scans, more than the limit of {MAX_SCANS}")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        values = np.asarray(image)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = _converted(image, "RGBA")
        del image
        shown = Image.new("RGB", layer.size, "white")
        shown.paste(layer, mask=layer)
        return shown
    return _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image.convert(mode)
    except (ValueError, TypeError, OSError) as error:  # no way from this mode, or a `transparency` that is none
        raise UserError(f"the image cannot be decoded: {error}") from error
