"""Image search by a service: `POST /image_search`, as `mmsearch serve images` has it (`search/server.py`).

Any server that takes `{"image": base64, "k": n}` and answers `{"hits": [{"title", "url"?, "score"?, "thumbnail"?}]}`
will do; a thumbnail is an image in base64, or null.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery
from mmsearch_trl.search.calls.deadline import in_time
from mmsearch_trl.search.calls.image_decoder import ImageDecoder
from mmsearch_trl.search.calls.section import ImageConfig, Shared, named
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.web.service import RETRIEVER_TOKEN, Service, check_url


_MAX_ANSWER = 40_000_000


@dataclass(frozen=True, kw_only=True)
class ImageServiceConfig(ImageConfig):
    """`search.image` with `backend: service`."""

    backend: Literal["service"] = field(
        default="service", metadata={"help": "A server with `/image_search`, such as `mmsearch serve images`."}
    )
    url: str = field(metadata={"help": "Its address. A token that it wants is in MMSEARCH_RETRIEVER_TOKEN."})
    corpus: str = field(default="", metadata={"help": "Name of what it serves: another name, other cached results."})

    def __post_init__(self) -> None:
        super().__post_init__()
        with named(f"{self.section}.url"):
            check_url(self.url, "http://127.0.0.1:8001/image_search")

    def open(self, shared: Shared) -> "ImageService":
        return ImageService(self.url, token=os.environ.get(RETRIEVER_TOKEN), corpus=self.corpus)


class ImageService:
    """A `SearchBackend[ImageQuery]`.

    Args:
        url: Of the endpoint, or of the server that has one.
        token: Bearer token, where the server wants one.
        corpus: Name of what it serves, part of the key of cached results.
    """

    name = "image-service"
    by_pixels = True

    def __init__(self, url: str, *, token: str | None = None, corpus: str = "") -> None:
        server = url.rstrip("/").removesuffix("/image_search")
        self._service = Service(server, token=token, max_bytes=_MAX_ANSWER)
        self._decoder = ImageDecoder()
        self.fingerprint = digest_of(self.name, server, corpus)

    async def search(self, query: ImageQuery, k: int) -> Sequence[ImageHit]:
        """Pages that show the image, best first; one whose image cannot be read in time keeps its title.

        Raises:
            SearchError: see `Service.post`; `BAD_RESPONSE` where the answer is not of the contract.
        """
        request = {"image": await call_blocking(png_base64, query.image), "k": k}
        answer = await self._service.post("/image_search", json=request)
        rows = answer.get("hits") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise SearchError(FailureKind.BAD_RESPONSE, "the answer holds no list of hits")
        rows = rows[:k]
        images = await in_time(self._thumbnail(row.get("thumbnail")) for row in rows)
        return [_hit(row, image) for row, image in zip(rows, images, strict=True)]

    async def check(self) -> None:
        """See that the server is there and answers by the contract; to search it costs nothing.

        Raises:
            SearchError: see `search`.
        """
        await self.search(ImageQuery(Image.new("RGB", (56, 56), "white")), 1)

    async def close(self) -> None:
        self._decoder.close()
        await self._service.close()

    async def _thumbnail(self, encoded: Any) -> Image.Image | None:
        if not isinstance(encoded, str):
            return None
        try:
            file = base64.b64decode(encoded, validate=True)
        except ValueError:
            return None
        return await self._decoder.decode(file)


def png_base64(image: Image.Image) -> str:
    """An image without loss: the model sees the same pixels as without a service between."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _hit(row: dict[str, Any], thumbnail: Image.Image | None) -> ImageHit:
    title, url, score = (row.get(name) for name in ("title", "url", "score"))
    return ImageHit(
        title=title if isinstance(title, str) else "",
        url=url if isinstance(url, str) else None,
        thumbnail=thumbnail,
        score=float(score) if isinstance(score, int | float) else None,
    )
