"""Text search by meaning in a Qdrant collection, with vectors of our own encoder.

Of Qdrant's REST contract three calls are needed: what a collection is (`GET /collections/NAME`), one of its points
(`POST .../points/scroll`), the nearest ones (`POST .../points/query`, Qdrant 1.10 and later). They go through
`search/web/service.py`, whose failures are typed and whose answers are bounded; the official client would bring gRPC
and failures of its own for the same three.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.batching import Batched
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.stored import hit_of, server_and_name
from mmsearch_trl.search.web.service import Service


if TYPE_CHECKING:  # torch is imported only where an encoder is asked for
    from mmsearch_trl.search.text.encoder import TextEncoder

KEY_VARIABLE = "QDRANT_API_KEY"
_QUERIES = 32
_CONTRACT_ERRORS = (TypeError, KeyError, ValueError, AttributeError, IndexError)


class QdrantSearch:
    """A `SearchBackend[str]`. A key that the server wants is in `QDRANT_API_KEY`.

    Args:
        address: Of the collection, such as `http://127.0.0.1:6333/collections/wiki`. It holds one vector per point,
            named or not; payloads are as `stored.py` says.
        encoder: Made the collection's vectors, and makes those of queries.
        corpus: Name of what the collection holds, part of the key of cached results.

    Raises:
        UserError: the address is none of a collection.
    """

    name = "qdrant"

    def __init__(self, address: str, encoder: "TextEncoder", *, corpus: str = "") -> None:
        server, self._collection = server_and_name(address)
        self._path = f"/{self._collection}"
        key = os.environ.get(KEY_VARIABLE)
        if not server.endswith("/collections"):
            raise UserError(f"{address} is no collection, such as http://127.0.0.1:6333/collections/NAME")
        self._service = Service(server, headers={"api-key": key} if key else None)
        self._encoder = encoder
        self._encode = Batched(self._vectors_of, _QUERIES)
        self._using: dict[str, str] | None = None
        """Which vector of a point is searched; None as long as nobody has looked."""
        self.fingerprint = digest_of(self.name, server, self._collection, encoder.fingerprint, corpus)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """The `k` nearest passages, best first.

        Raises:
            SearchError: see `check` and `Service.post`; `BAD_RESPONSE` where the answer is not of the contract.
        """
        if self._using is None:
            await self.check()
        vector = await self._encode(query)
        request = {"query": vector.tolist(), "limit": k, "with_payload": True, **(self._using or {})}
        answer = await self._service.post(f"{self._path}/points/query", json=request)
        try:
            return [hit_of(point["payload"], point["score"], point["id"]) for point in answer["result"]["points"]]
        except _CONTRACT_ERRORS:
            raise SearchError(FailureKind.BAD_RESPONSE, "the answer is not of Qdrant's contract") from None

    async def check(self) -> None:
        """See that the collection is there, fits the encoder, and holds passages.

        Raises:
            SearchError: it does not (`BLOCKED`), or the server cannot be asked: see `Service.post`.
        """
        try:
            about = await self._service.get(self._path)
            sample = await self._service.post(f"{self._path}/points/scroll", json={"limit": 1, "with_payload": True})
        except SearchError as error:
            if error.failure.kind is FailureKind.BLOCKED:
                raise self._unfit("is not there, or may not be read") from None
            raise
        try:
            vectors, points = about["result"]["config"]["params"]["vectors"], sample["result"]["points"]
            using = _only_vector(vectors)
            size = (vectors[using["using"]] if using else vectors).get("size")
        except _CONTRACT_ERRORS:
            raise self._unfit("does not have one vector per point") from None
        if size != self._encoder.dim:
            raise self._unfit(f"has vectors of {size} numbers, and {self._encoder.name} makes {self._encoder.dim}")
        self._check_passages(points)
        self._using = using

    def _vectors_of(self, queries: Sequence[str]) -> list[FloatArray]:
        return list(self._encoder.queries(queries))

    def _check_passages(self, points: Any) -> None:
        if not points:
            raise self._unfit("is empty")
        try:
            hit_of(points[0]["payload"], None, points[0]["id"])
        except _CONTRACT_ERRORS:
            raise self._unfit("has payloads that hold neither `contents` nor `text`") from None

    def _unfit(self, why: str) -> SearchError:
        return SearchError(FailureKind.BLOCKED, f"the collection {self._collection} {why}")

    async def close(self) -> None:
        await self._service.close()


def _only_vector(vectors: dict[str, Any]) -> dict[str, str]:
    """What names the collection's one vector in a request: nothing, where it has no name.

    Raises:
        UserError: there are several.
    """
    if "size" in vectors:
        return {}
    [name] = vectors
    return {"using": name}
