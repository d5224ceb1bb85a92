"""Text search by words (BM25) in an OpenSearch index, through OpenSearch's own client.

Elasticsearch has the same two calls: what fields an index has, and a `match` query. An answer that some shard did not
take part in is a failure and not a shorter list, because answers are cached; and the same copies of the shards are
asked each time, because each counts its words for itself.
"""

import logging
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import aiohttp

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.stored import hit_of
from mmsearch_trl.search.web.service import check_address, refusal


if TYPE_CHECKING:
    from opensearchpy import AsyncOpenSearch

USER_VARIABLE, PASSWORD_VARIABLE = "OPENSEARCH_USER", "OPENSEARCH_PASSWORD"
TOKEN_VARIABLE = "OPENSEARCH_TOKEN"
_FIELDS = ("contents", "text")
"""What is searched: the first that the index has."""
_WHOLE = {"allow_partial_search_results": "false", "preference": "mmsearch"}
_ANY_NUMBER = 0


@dataclass(frozen=True, kw_only=True)
class OpenSearchConfig(TextConfig):
    """`search.text` with `backend: opensearch`."""

    backend: Literal["opensearch"] = field(
        default="opensearch", metadata={"help": "Passages by their words, in OpenSearch or Elasticsearch."}
    )
    url: str = field(
        metadata={
            "help": "Address of the server, http://HOST:9200. What it wants is in OPENSEARCH_TOKEN, or "
            "OPENSEARCH_USER and OPENSEARCH_PASSWORD."
        }
    )
    index: str = field(metadata={"help": "The index there."})
    corpus: str = field(default="", metadata={"help": "Name of what it holds: another name, other cached results."})

    def open(self, shared: Shared) -> "OpenSearch":
        with named("search.text.url"):
            return OpenSearch(self.url, self.index, corpus=self.corpus)


class OpenSearch:
    """A `SearchBackend[str]`. What the server wants is in `OPENSEARCH_TOKEN`, or `OPENSEARCH_USER` and `_PASSWORD`.

    Args:
        url: Of the server, such as `http://127.0.0.1:9200`.
        index: Its documents are as `stored.py` says.
        corpus: Name of what the index holds, part of the key of cached results.

    Raises:
        UserError: the address is none, there is a user without a password, or OpenSearch's client is not installed.
    """

    name = "opensearch"

    def __init__(self, url: str, index: str, *, corpus: str = "") -> None:
        with optional("searching an OpenSearch index", "opensearch"):
            import opensearchpy  # noqa: F401
        check_address(url)
        self._url, self._index = url.rstrip("/"), index
        self._authorization = _authorization()
        self._client: AsyncOpenSearch | None = None
        self._field: str | None = None
        self.fingerprint = digest_of(self.name, self._url, index, corpus)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """The `k` passages whose words fit best, best first.

        Raises:
            SearchError: see `check` and `Service.post`; `BAD_RESPONSE` where the answer is not of the contract.
        """
        if self._field is None:
            await self.check()
        body = {"size": k, "query": {"match": {self._field: {"query": query}}}}
        answer = await _answer(self._connected().search(index=self._index, body=body, params=dict(_WHOLE)))
        try:
            if answer["timed_out"] or answer["_shards"]["failed"]:
                raise SearchError(FailureKind.UNAVAILABLE, "some shards of the index did not answer")
            return [hit_of(row["_source"], row["_score"], row["_id"]) for row in answer["hits"]["hits"]]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise SearchError(FailureKind.BAD_RESPONSE, "the answer is not of OpenSearch's contract") from None

    async def check(self) -> None:
        """See that the index is there and has text to search.

        Raises:
            SearchError: it does not (`BLOCKED`), or the server cannot be asked: see `Service.get`.
        """
        try:
            mapping = await _answer(self._connected().indices.get_mapping(index=self._index))
        except SearchError as error:
            if error.failure.kind is FailureKind.BLOCKED:
                raise self._unfit("is not there, or may not be read") from None
            raise
        fields = _text_fields(mapping)
        found = next((name for name in _FIELDS if name in fields), None)
        if found is None:
            raise self._unfit(f"has no text field {' or '.join(_FIELDS)}")
        self._field = found

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connected(self) -> "AsyncOpenSearch":
        """The client, opened where it is not yet."""
        if self._client is None:
            from opensearchpy import AsyncOpenSearch

            # It would log each failed call with its traceback, and the failure is told already.
            logging.getLogger("opensearch").setLevel(logging.ERROR)
            # Time, tries and calls at once are the caller's to bound; the client would do it a second time.
            self._client = AsyncOpenSearch(
                [self._url], timeout=None, max_retries=0, maxsize=_ANY_NUMBER, **self._authorization
            )
        return self._client

    def _unfit(self, why: str) -> SearchError:
        return SearchError(FailureKind.BLOCKED, f"the index {self._index} {why}")


async def _answer(request: Awaitable[Any]) -> Any:
    """What OpenSearch's client gives.

    Raises:
        SearchError: in place of all that it raises; an answer's own words stay out, for they may hold anything.
    """
    from opensearchpy import ConnectionError, ConnectionTimeout, SerializationError, TransportError

    try:
        return await request
    except ConnectionTimeout:
        raise SearchError(FailureKind.TIMEOUT, "the service did not answer in time") from None
    except ConnectionError as error:  # its word for whatever went wrong
        name = type(error.info).__name__
        if isinstance(error.info, OSError | aiohttp.ClientConnectionError):
            raise SearchError(FailureKind.UNAVAILABLE, f"the service is not there: {name}") from None
        raise SearchError(FailureKind.BAD_RESPONSE, f"the answer is broken: {name}") from None
    except TransportError as error:
        raise refusal(int(error.status_code)) from None
    except (SerializationError, RecursionError):
        raise SearchError(FailureKind.BAD_RESPONSE, "the answer is no JSON") from None


def _text_fields(mapping: Any) -> set[str]:
    """The analysed fields that all indexes of a mapping have: an alias may stand for several."""
    try:
        of_each = [index["mappings"].get("properties", {}) for index in mapping.values()]
        found = [{name for name, field in fields.items() if field.get("type") == "text"} for fields in of_each]
    except (TypeError, KeyError, AttributeError):
        raise SearchError(FailureKind.BAD_RESPONSE, "the answer is not of OpenSearch's contract") from None
    return set.intersection(*found) if found else set()


def _authorization() -> dict[str, Any]:
    """The client's arguments that say who asks."""
    token, user, password = (os.environ.get(name) for name in (TOKEN_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE))
    if token:
        return {"headers": {"Authorization": f"Bearer {token}"}}
    if not user:
        return {}
    if not password:
        raise UserError(f"{USER_VARIABLE} is set in the environment, and {PASSWORD_VARIABLE} is not")
    return {"http_auth": (user, password)}
