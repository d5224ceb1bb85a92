"""Thumbnails from the web: the picture, or why there is none. A picture is never made up."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.image.loading import load_image
from mmsearch_trl.search.image.thumbnail import THUMBNAIL_SIDE, shrink
from mmsearch_trl.search.types import ImageHit, SearchError
from mmsearch_trl.search.web.fetch import IMAGE_TYPES, Fetcher


async def with_thumbnails(fetcher: Fetcher, hits: Sequence[tuple[ImageHit, str | None]]) -> list[ImageHit]:
    """The hits with the pictures that their addresses give; one whose picture cannot be had keeps its title only."""
    pictures = await asyncio.gather(*(_thumbnail(fetcher, address) for _, address in hits))
    return [replace(hit, thumbnail=picture) for (hit, _), picture in zip(hits, pictures, strict=True)]


async def _thumbnail(fetcher: Fetcher, address: str | None) -> Image.Image | None:
    if address is None:
        return None
    try:
        fetched = await fetcher.fetch(address, IMAGE_TYPES)
        return await call_blocking(_opened, fetched.body)
    except (SearchError, ValueError):
        return None


def _opened(data: bytes) -> Image.Image:
    return shrink(load_image(data), THUMBNAIL_SIDE)
