"""Text search by words (BM25) in an OpenSearch index, through its REST contract.

Elasticsearch has the same two calls: what fields an index has (`GET /NAME/_mapping`) and a `match` query (`POST
/NAME/_search`). An answer that some shard did not take part in is a failure and not a shorter list, because answers
are kept; and the same copies of the shards are asked each time, because each counts its words for itself.
"""

import base64
import os
from collections.abc import Sequence
from typing import Any

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.text.stored import hit_of, server_and_name
from mmsearch_trl.search.web.service import Service


USER_VARIABLE, PASSWORD_VARIABLE = "OPENSEARCH_USER", "OPENSEARCH_PASSWORD"
TOKEN_VARIABLE = "OPENSEARCH_TOKEN"
_FIELDS = ("contents", "text")
"""What is searched: the first that the index has."""
_SEARCH = "/_search?allow_partial_search_results=false&preference=mmsearch"


class OpenSearch:
    """A `SearchBackend[str]`. What the server wants is in `OPENSEARCH_TOKEN`, or `OPENSEARCH_USER` and `_PASSWORD`.

    Args:
        address: Of the index, such as `http://127.0.0.1:9200/wiki`; its documents are as `stored.py` says.
        corpus: Name of what the index holds, part of the key of cached results.

    Raises:
        UserError: the address is none of an index, or there is a user without a password.
    """

    name = "opensearch"

    def __init__(self, address: str, *, corpus: str = "") -> None:
        server, self._index = server_and_name(address)
        self._service = Service(server, headers=_authorization())
        self._field: str | None = None
        self.fingerprint = digest_of(self.name, server, self._index, corpus)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """The `k` passages whose words fit best, best first.

        Raises:
            SearchError: see `check` and `Service.post`; `BAD_RESPONSE` where the answer is not of the contract.
        """
        if self._field is None:
            await self.check()
        request = {"size": k, "query": {"match": {self._field: {"query": query}}}}
        answer = await self._service.post(f"/{self._index}{_SEARCH}", json=request)
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
            mapping = await self._service.get(f"/{self._index}/_mapping")
        except SearchError as error:
            if error.failure.kind is FailureKind.BLOCKED:
                raise self._unfit("is not there, or may not be read") from None
            raise
        fields = _text_fields(mapping)
        found = next((name for name in _FIELDS if name in fields), None)
        if found is None:
            raise self._unfit(f"has no text field {' or '.join(_FIELDS)}")
        self._field = found

    def _unfit(self, why: str) -> SearchError:
        return SearchError(FailureKind.BLOCKED, f"the index {self._index} {why}")

    async def close(self) -> None:
        await self._service.close()


def _text_fields(mapping: Any) -> set[str]:
    """The analysed fields that all indexes of a mapping have: an alias may stand for several."""
    try:
        of_each = [index["mappings"].get("properties", {}) for index in mapping.values()]
        found = [{name for name, field in fields.items() if field.get("type") == "text"} for fields in of_each]
    except (TypeError, KeyError, AttributeError):
        raise SearchError(FailureKind.BAD_RESPONSE, "the answer is not of OpenSearch's contract") from None
    return set.intersection(*found) if found else set()


def _authorization() -> dict[str, str]:
    token, user, password = (os.environ.get(name) for name in (TOKEN_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE))
    if token:
        return {"Authorization": f"Bearer {token}"}
    if not user:
        return {}
    if not password:
        raise UserError(f"{USER_VARIABLE} is set in the environment, and {PASSWORD_VARIABLE} is not")
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
