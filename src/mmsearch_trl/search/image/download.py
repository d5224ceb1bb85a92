"""Thumbnails from the web: the image, or why there is none. An image is never made up."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import ImageHit
from mmsearch_trl.search.calls.deadline import in_time
from mmsearch_trl.search.calls.image_decoder import ImageDecoder
from mmsearch_trl.search.media.thumbnail import THUMBNAIL_SIDE
from mmsearch_trl.search.web.fetch import IMAGE_TYPES, Fetcher


logger = logging.getLogger(__name__)

_SECONDS = 5.0
"""That thumbnails are waited for, at most: what is missing then is one picture, and its title is there."""


class Thumbnails:
    """Gets the images that hits name by address.

    Args:
        fetcher: Fetches them.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._decoder = ImageDecoder()

    async def of(self, hits: Sequence[tuple[ImageHit, str | None]]) -> list[ImageHit]:
        """The hits with the images that their addresses give; one whose image cannot be had in time keeps its title
        only.

        Raises:
            SearchError: `UNAVAILABLE`: there is no process to decode images in.
        """
        images = await in_time((self._thumbnail(address) for _, address in hits), _SECONDS)
        return [replace(hit, thumbnail=image) for (hit, _), image in zip(hits, images, strict=True)]

    async def close(self) -> None:
        self._decoder.close()
        await self._fetcher.close()

    async def _thumbnail(self, address: str | None) -> Image.Image | None:
        if address is None:
            return None
        try:
            fetched = await self._fetcher.fetch(address, IMAGE_TYPES)
        except SearchError:
            return None
        except Exception as error:  # a defect costs one thumbnail, not the search; its text may hold the address
            logger.warning("a thumbnail could not be fetched: %s", type(error).__name__)
            return None
        return await self._decoder.decode(fetched.body, THUMBNAIL_SIDE)
