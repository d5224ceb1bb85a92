"""Thumbnails from the web: the image, or why there is none. An image is never made up."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import ImageHit
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.media.thumbnail import THUMBNAIL_SIDE, shrink
from mmsearch_trl.search.web.fetch import IMAGE_TYPES, Fetcher


async def with_thumbnails(fetcher: Fetcher, hits: Sequence[tuple[ImageHit, str | None]]) -> list[ImageHit]:
    """The hits with the images that their addresses give; one whose image cannot be had keeps its title only."""
    images = await asyncio.gather(*(_thumbnail(fetcher, address) for _, address in hits))
    return [replace(hit, thumbnail=image) for (hit, _), image in zip(hits, images, strict=True)]


async def _thumbnail(fetcher: Fetcher, address: str | None) -> Image.Image | None:
    if address is None:
        return None
    try:
        fetched = await fetcher.fetch(address, IMAGE_TYPES)
        return await call_blocking(lambda: shrink(load_image(fetched.body), THUMBNAIL_SIDE))
    except (SearchError, UserError):
        return None
