"""Images that rows name by their address, fetched while the rows are read.

The address stands in a file that somebody may have published, so that the client of the search tools asks for it
(`search/web/fetch.py`): this machine and its network cannot be reached through it, and size and time are bounded. A
row whose image cannot be fetched is a bad row; the address is no part of the message, as it may hold a key.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.data.image_cells import BoundedImage, ImageAddress, ImageSource, unbounded
from mmsearch_trl.data.rows import Row, RowError, in_waves
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.search.web.fetch import IMAGE_TYPES, Fetcher


_TYPES = (*IMAGE_TYPES, "image/jpg", "application/octet-stream", "binary/octet-stream")
"""What a server that does not look at its files says of an image, too; whether it is one is seen when it is opened."""
_TIMEOUT_S, _MAX_BYTES = 30.0, 50_000_000
_ROWS_AT_A_TIME, _AT_ONCE = 32, 16
_TRIES, _PAUSE_S = 3, 1.0
_MAY_PASS = (FailureKind.TIMEOUT, FailureKind.RATE_LIMITED, FailureKind.UNAVAILABLE)


def with_fetched_images(rows: Iterable[Row | RowError], path: Path) -> Iterator[Row | RowError]:
    """Rows with encoded images in place of addresses.

    Args:
        path: The source, for messages.
    """
    for some in in_waves(rows, _ROWS_AT_A_TIME):
        images = (unbounded(image) for row in some if isinstance(row, Row) for image in row.images)
        addresses = {image for image in images if isinstance(image, ImageAddress)}
        fetched = run_to_end(_fetch(addresses)) if addresses else {}
        yield from (_filled(row, fetched, path) if isinstance(row, Row) else row for row in some)


def _filled(row: Row, fetched: Mapping[ImageAddress, bytes | SearchError], path: Path) -> Row | RowError:
    images: list[ImageSource] = []
    for number, image in enumerate(row.images, start=1):
        plain = unbounded(image)
        found = fetched[plain] if isinstance(plain, ImageAddress) else plain
        if isinstance(found, SearchError):
            return RowError(path, row.place, f"unreadable image: the address of image {number}: {found}")
        images.append(replace(image, source=found) if isinstance(image, BoundedImage) else found)
    return replace(row, images=tuple(images))


async def _fetch(addresses: Collection[ImageAddress]) -> dict[ImageAddress, bytes | SearchError]:
    fetcher, places = Fetcher(timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES), asyncio.Semaphore(_AT_ONCE)

    async def one(address: ImageAddress) -> bytes | SearchError:
        async with places:
            for number in range(1, _TRIES + 1):
                try:
                    return (await fetcher.fetch(address, _TYPES)).body
                except SearchError as error:
                    if number == _TRIES or error.failure.kind not in _MAY_PASS:
                        return error
                    await asyncio.sleep(_PAUSE_S * number)
        raise AssertionError("a try returns")

    try:
        return dict(zip(addresses, await asyncio.gather(*map(one, addresses)), strict=True))
    finally:
        await fetcher.close()
