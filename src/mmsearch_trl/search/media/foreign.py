"""Decodes an image that a stranger made, as a job of a process which may be killed over it (`core/worker.py`).

A job is the longest side that is wanted (0 for any) and the file; an answer is the size and the RGB pixels, or nothing
where it is no readable image.
"""

import struct

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import shrink


_SIDE = struct.Struct("<I")
_SIZE = struct.Struct("<II")


def job(file: bytes, side: int | None) -> bytes:
    return _SIDE.pack(side or 0) + file


def decode(job: bytes) -> bytes:
    """Runs in the worker.

    Raises:
        MemoryError: the image needs more than the process may take.
    """
    [side] = _SIDE.unpack_from(job)
    try:
        image = load_image(memoryview(job)[_SIDE.size :])
    except UserError:
        return b""
    image = shrink(image, side) if side else image
    return _SIZE.pack(*image.size) + image.tobytes()


def image_of(answer: bytes) -> Image.Image | None:
    if not answer:
        return None
    return Image.frombytes("RGB", _SIZE.unpack_from(answer), memoryview(answer)[_SIZE.size :])
