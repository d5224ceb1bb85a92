"""Images that strangers made, decoded within a budget of memory and of time, and no longer than somebody waits."""

import os

from PIL import Image

from mmsearch_trl.search.calls.worker_pool import WorkerPool
from mmsearch_trl.search.media.foreign import image_of, job


PROCESSES = min(4, os.cpu_count() or 2)
MEMORY = 768 << 20
"""Bytes of address space of one process: the largest image that is read takes half of it."""

_ONE_PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


class ImageDecoder:
    """
    Args:
        timeout_s: Seconds that one image may take.
    """

    def __init__(self, *, timeout_s: float = 3.0) -> None:
        self._timeout_s = timeout_s
        self._pool = WorkerPool(
            "mmsearch_trl.search.media.foreign:decode", job(_ONE_PIXEL, None), processes=PROCESSES, memory=MEMORY
        )

    async def decode(self, file: bytes, side: int | None = None) -> Image.Image | None:
        """An image as RGB, as `load_image` has it; None where it is none, or takes too much time or memory.

        Args:
            side: Pixels to which the longer side of a larger one is brought.

        Raises:
            SearchError: `UNAVAILABLE`: there is no process to decode it in.
        """
        try:
            return image_of(await self._pool.ask(job(file, side), self._timeout_s))
        except (TimeoutError, EOFError):
            return None

    def close(self) -> None:
        """End the processes; the next image starts them again."""
        self._pool.close()
