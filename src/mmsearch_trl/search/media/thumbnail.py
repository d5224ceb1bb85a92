"""Thumbnails: bounded in size, stored re-encoded by us, so that no byte of a stranger's file is handed on."""

import io

from PIL import Image


THUMBNAIL_SIDE = 448
"""Longer side of a stored thumbnail, pixels: 256 image tokens of Qwen2.5-VL at most."""

_LOSSLESS_PIXELS = 128 * 128


def shrink(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """The RGB image with its longer side at most `side` pixels; never enlarged."""
    longer = max(image.size)
    if longer <= side:
        return image
    size = (max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def encode_thumbnail(image: Image.Image) -> bytes:
    """An RGB image as PNG where it is small, else as JPEG of quality 92 with full colour resolution."""
    buffer = io.BytesIO()
    if image.width * image.height <= _LOSSLESS_PIXELS:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
