"""Text search by meaning in a Qdrant collection, with vectors of our own encoder.

Through Qdrant's own client, which reads a server and a folder of its embedded ("local") mode alike. A folder is opened
by one process at a time and held in memory, which is for some ten thousand passages (50 ms a query on one core); it
holds pickles, so that it should be one's own.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.batching import Batched
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.stored import hit_of
from mmsearch_trl.search.web.service import check_address, refusal, seconds_of


if TYPE_CHECKING:  # torch is imported only where an encoder is asked for
    from qdrant_client import AsyncQdrantClient

    from mmsearch_trl.search.text.encoder import TextEncoder

KEY_VARIABLE = "QDRANT_API_KEY"
_QUERIES = 32
_LONGEST_S = 3600
"""The client's own limit, 5 s, would cut short what the recipe allows; the caller bounds the time."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class QdrantConfig(TextConfig):
    """`search.text` with `backend: qdrant`."""

    backend: Literal["qdrant"] = field(
        default="qdrant", metadata={"help": "Passages by their meaning: nearest vectors of a Qdrant collection."}
    )
    location: str = field(
        metadata={
            "help": "Address of a server, http://HOST:6333, or folder of an embedded Qdrant. A key that a server "
            "wants is in QDRANT_API_KEY."
        }
    )
    collection: str = field(metadata={"help": "The collection there."})
    encoder: str = field(metadata={"help": "The model that made its vectors."})
    query_prefix: str | None = field(
        default=None, metadata={"help": "What goes before a question; default: what the encoder's own files say."}
    )
    corpus: str = field(default="", metadata={"help": "Name of what it holds: another name, other cached results."})

    def open(self, shared: Shared) -> "QdrantSearch":
        from mmsearch_trl.search.text.encoder import TextEncoder  # imports torch

        with named("search.text.encoder"):
            encoder = TextEncoder(self.encoder, query_prefix=self.query_prefix)
        with named("search.text.location"):
            return QdrantSearch(self.location, self.collection, encoder, corpus=self.corpus)


class QdrantSearch:
    """A `SearchBackend[str]`. A key that a server wants is in `QDRANT_API_KEY`.

    Args:
        location: Of a server, such as `http://127.0.0.1:6333`, or the folder of an embedded Qdrant.
        collection: Holds one vector per point, named or not; payloads are as `stored.py` says.
        encoder: Made the collection's vectors, and makes those of queries.
        corpus: Name of what the collection holds, part of the key of cached results.

    Raises:
        UserError: the location is neither an address nor such a folder, or Qdrant's client is not installed.
    """

    name = "qdrant"

    def __init__(self, location: str, collection: str, encoder: "TextEncoder", *, corpus: str = "") -> None:
        with optional("searching a Qdrant collection", "qdrant"):
            import qdrant_client  # noqa: F401
        self._embedded = "://" not in location
        if not self._embedded:
            check_address(location)
        elif not (Path(location) / "meta.json").is_file():  # the client would make an empty one there
            raise UserError(f"{location} is neither an address nor the folder of an embedded Qdrant")
        self._location, self._collection = location.rstrip("/"), collection
        self._encoder = encoder
        self._encode: Batched[str, FloatArray] = Batched(lambda queries: list(encoder.queries(queries)), _QUERIES)
        self._client: AsyncQdrantClient | None = None
        self._checked = False
        self._using: str | None = None
        """Name of the vector that is searched; None where the collection's only vector has none."""
        self.fingerprint = digest_of(self.name, self._location, collection, encoder.fingerprint, corpus)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """The `k` nearest passages, best first.

        Raises:
            SearchError: see `check` and `Service.post`; `BAD_RESPONSE` where a point holds no passage.
        """
        if not self._checked:
            await self.check()
        vector = await self._encode(query)
        request = self._connected().query_points(
            self._collection, query=vector.tolist(), using=self._using, limit=k, with_payload=True
        )
        points = (await self._answer(request)).points
        try:
            return [hit_of(point.payload or {}, point.score, str(point.id)) for point in points]
        except (TypeError, KeyError, AttributeError):
            raise SearchError(FailureKind.BAD_RESPONSE, "a point of the collection holds no passage") from None

    async def check(self) -> None:
        """See that the collection is there, fits the encoder, and holds passages.

        Raises:
            SearchError: it does not (`BLOCKED`), or the server cannot be asked: see `Service.post`.
        """
        client = self._connected()
        if not await self._answer(client.collection_exists(self._collection)):
            raise self._unfit("is not there")
        vectors = (await self._answer(client.get_collection(self._collection))).config.params.vectors
        named = vectors if isinstance(vectors, dict) else {None: vectors} if vectors else {}
        if len(named) != 1:
            raise self._unfit("does not have one vector per point")
        [(using, params)] = named.items()
        if params.size != self._encoder.dim:
            wanted = f"{self._encoder.name} makes {self._encoder.dim}"
            raise self._unfit(f"has vectors of {params.size} numbers, and {wanted}")
        points, _ = await self._answer(client.scroll(self._collection, limit=1, with_payload=True))
        if not points:
            raise self._unfit("is empty")
        try:
            hit_of(points[0].payload or {}, None, str(points[0].id))
        except (TypeError, KeyError, AttributeError):
            raise self._unfit("has payloads that hold neither `contents` nor `text`") from None
        self._using, self._checked = using, True

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connected(self) -> "AsyncQdrantClient":
        """The client, opened where it is not yet.

        Raises:
            SearchError: `BLOCKED`: the folder is open elsewhere, or is damaged.
        """
        if self._client is None:
            self._client = self._opened_folder() if self._embedded else self._opened_server()
        return self._client

    def _opened_folder(self) -> "AsyncQdrantClient":
        from qdrant_client import AsyncQdrantClient

        try:
            return AsyncQdrantClient(path=self._location)
        except RuntimeError:  # the client's word for its lock
            message = f"{self._location} is open in another process: for several, start a Qdrant server"
            raise SearchError(FailureKind.BLOCKED, message) from None
        except Exception as error:  # it is read as pickles in SQLite: damaged, it raises anything
            message = f"{self._location} cannot be opened by Qdrant's client: {type(error).__name__}"
            raise SearchError(FailureKind.BLOCKED, message) from None

    def _opened_server(self) -> "AsyncQdrantClient":
        from qdrant_client import AsyncQdrantClient

        return AsyncQdrantClient(
            url=self._location,
            api_key=os.environ.get(KEY_VARIABLE) or None,
            timeout=_LONGEST_S,
            check_compatibility=False,  # it would ask from a thread of its own, at every connection
            trust_env=False,  # the environment's proxy is not for the recipe's own server
        )

    async def _answer(self, request: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What Qdrant's client gives.

        Raises:
            SearchError: in place of all that it raises; an answer's own words stay out, for they may hold anything.
        """
        import httpx
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        try:
            if self._embedded:  # it computes and never waits: on a thread, so that the loop goes on meanwhile
                return await call_blocking(lambda: asyncio.run(request))
            return await request
        except UnexpectedResponse as error:
            raise refusal(error.status_code or 500, seconds_of(error.headers.get("Retry-After"))) from None
        except QdrantException as error:  # status 429 with a Retry-After, which it holds if it is a number
            raise refusal(429, getattr(error, "retry_after_s", None)) from None
        except ResponseHandlingException as error:
            kind, name = error.source, type(error.source).__name__
            if isinstance(kind, httpx.TimeoutException):
                raise SearchError(FailureKind.TIMEOUT, "the service did not answer in time") from None
            if isinstance(kind, httpx.NetworkError | OSError):
                raise SearchError(FailureKind.UNAVAILABLE, f"the service is not there: {name}") from None
            raise SearchError(FailureKind.BAD_RESPONSE, f"the answer is broken: {name}") from None
        except (ValueError, AssertionError, RecursionError):  # of its parser
            raise SearchError(FailureKind.BAD_RESPONSE, "the answer is not of Qdrant's contract") from None

    def _unfit(self, why: str) -> SearchError:
        return SearchError(FailureKind.BLOCKED, f"the collection {self._collection} {why}")
