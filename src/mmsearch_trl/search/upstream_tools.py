"""Search functions written for MMSearch-R1, used as backends as they are.

Upstream's tools return ready-made text, with one placeholder an image, and a dictionary of statistics:

    call_image_search(image_url) -> (text, images, {"success": bool, "num_images": int})
    call_text_search(query)      -> (text, {"success": bool, "num_results": int})

The text is handed on as a `RawReply`; the runtime checks that placeholders and images agree in number, where upstream
crashes. Failure is read from the statistics, or from upstream's own error sentence at the start of the text. The
functions may block: they run on threads of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, ImageQuery, RawReply
from mmsearch_trl.search.calls.threads import call_blocking


ERROR_STARTS = tuple(f"[{tool} Search Results] There is an error encountered" for tool in ("Text", "Image"))

ImageTool = Callable[[Any], tuple[str, Sequence[Image.Image], Mapping[str, Any]]]
TextTool = Callable[[str], tuple[str, Mapping[str, Any]]]


class UpstreamImageSearch:
    """`call_image_search` as a `SearchBackend[ImageQuery]`.

    Args:
        function: Called with the image's public address, None where the data set has none.
        fingerprint: Change it when the function would answer otherwise: cached answers are kept under it.
    """

    name = "upstream-image-search"

    def __init__(self, function: ImageTool, *, fingerprint: str | None = None) -> None:
        self._function = function
        self.fingerprint = fingerprint or _name_of(function)

    async def search(self, query: ImageQuery, k: int) -> RawReply:
        """The function's reply; `k` is the function's own affair."""
        text, images, statistics = _parts(await call_blocking(self._function, query.url), 3)
        if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
            raise SearchError(FailureKind.BAD_RESPONSE, "the second value of an image search must be PIL images")
        return RawReply(_successful(text, statistics), tuple(images))


class UpstreamTextSearch:
    """`call_text_search` as a `SearchBackend[str]`; arguments as for `UpstreamImageSearch`."""

    name = "upstream-text-search"

    def __init__(self, function: TextTool, *, fingerprint: str | None = None) -> None:
        self._function = function
        self.fingerprint = fingerprint or _name_of(function)

    async def search(self, query: str, k: int) -> RawReply:
        """The function's reply; `k` is the function's own affair."""
        return RawReply(_successful(*_parts(await call_blocking(self._function, query), 2)))


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _parts(reply: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(reply, tuple | list) or len(reply) != count:
        found = f"{len(reply)} values" if isinstance(reply, tuple | list) else type(reply).__name__
        raise SearchError(FailureKind.BAD_RESPONSE, f"the tool must return {count} values, it returned {found}")
    return tuple(reply)


def _successful(text: Any, statistics: Any) -> str:
    """The text of a search that went well.

    Raises:
        SearchError: the statistics or the text say that it did not.
    """
    if not isinstance(text, str):
        raise SearchError(FailureKind.BAD_RESPONSE, f"the tool's first value must be text, not {type(text).__name__}")
    if isinstance(statistics, Mapping) and statistics.get("success") is False:
        raise SearchError(FailureKind.UNAVAILABLE, "the tool reported that it did not succeed")
    if text.lstrip().startswith(ERROR_STARTS):
        raise SearchError(FailureKind.UNAVAILABLE, "the tool returned its error sentence")
    return text
