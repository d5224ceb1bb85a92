"""Image search by Google Lens, through SerpApi: the image is uploaded, so it needs no public address."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from mmsearch_trl.core.observation import ImageHit, ImageQuery
from mmsearch_trl.search.calls.section import ImageConfig, Shared
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.image.download import Thumbnails
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.media.thumbnail import shrink
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.serpapi import SerpApi, rows, text


MAX_UPLOAD = 500_000
"""Bytes that SerpApi takes."""

_LONGEST_SIDE = 1024
_SPARE = 2
"""Hits beyond k that are looked at: one without title and image is of no use."""


@dataclass(frozen=True, kw_only=True)
class SerpApiLensConfig(ImageConfig):
    """`search.image` with `backend: serpapi`."""

    backend: Literal["serpapi"] = field(
        default="serpapi", metadata={"help": "Google Lens through SerpApi. Paid; the key is in SERPAPI_API_KEY."}
    )

    def open(self, shared: Shared) -> "SerpApiLens":
        return SerpApiLens(SerpApi(), Fetcher(denied_hosts=shared.denied_hosts))


class SerpApiLens:
    """A `SearchBackend[ImageQuery]`.

    Args:
        api: The account.
        fetcher: Fetches the thumbnails.
        country: Of the searcher, two letters.
        language: Of the results, two letters.
    """

    name = "serpapi-lens"
    by_pixels = True
    paid = True

    def __init__(self, api: SerpApi, fetcher: Fetcher, *, country: str = "us", language: str = "en") -> None:
        self._api = api
        self._thumbnails = Thumbnails(fetcher)
        self._where = {"country": country, "hl": language}
        self.fingerprint = digest_of(self.name, country, language)

    async def search(self, query: ImageQuery, k: int) -> Sequence[ImageHit]:
        """Pages that show the image or one like it, best first.

        Raises:
            SearchError: see `SerpApi.search`.
        """
        image_id = await self._api.upload(await call_blocking(encoded, query.image))
        answer = await self._api.search("google_lens", image_id=image_id, type="visual_matches", **self._where)
        matches = [row for row in rows(answer, "visual_matches") if text(row, "title") or text(row, "thumbnail")]
        hits = [
            (ImageHit(title=text(row, "title"), url=text(row, "link") or None), text(row, "thumbnail") or None)
            for row in matches[: k + _SPARE]
        ]
        found = await self._thumbnails.of(hits)
        return [hit for hit in found if hit.title or hit.thumbnail is not None][:k]

    async def check(self) -> None:
        await self._api.check()

    async def close(self) -> None:
        await self._api.close()
        await self._thumbnails.close()


def encoded(image: Image.Image) -> bytes:
    """The image as a JPEG that SerpApi takes."""
    side = _LONGEST_SIDE
    while True:
        buffer = io.BytesIO()
        # Smaller rather than coarser: the blocks of a strong compression are shapes, too.
        shrink(image.convert("RGB"), side).save(buffer, "JPEG", quality=90)
        if buffer.tell() <= MAX_UPLOAD:
            return buffer.getvalue()
        side = side * 3 // 4
