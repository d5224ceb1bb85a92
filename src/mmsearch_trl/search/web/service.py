"""A JSON service that the user has configured: search engines, retrievers, readers, language models.

Its answers are bounded and typed like everything else's, and its key is in no message, whatever the service echoes.
Unlike `fetch.py` this client goes wherever the recipe says, this machine and the local network included.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from mmsearch_trl.core.errors import SearchError, UserError, shortened
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.cost import count_bytes


RETRIEVER_TOKEN = "MMSEARCH_RETRIEVER_TOKEN"
"""Holds the bearer token of a retrieval server and of an image service."""

_KINDS = {
    401: FailureKind.KEY_REFUSED,
    402: FailureKind.QUOTA_SPENT,
    403: FailureKind.KEY_REFUSED,
    408: FailureKind.TIMEOUT,
    429: FailureKind.RATE_LIMITED,
    504: FailureKind.TIMEOUT,
}
_CHUNK = 1 << 16


class Service:
    """Calls to one service. Time is the caller's to bound, as `BackendClient` does.

    Args:
        url: Such as `http://127.0.0.1:8000`; paths are put behind it.
        token: Bearer token, where the service wants one.
        headers: Sent with every call.
        quota_words: What an answer says (in lower case) when it is refused because a quota is spent, where the service
            gives no status of its own for that.
        max_bytes: Most bytes of an answer.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        quota_words: str | None = None,
        max_bytes: int = 8_000_000,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        self._quota_words = quota_words
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Any:
        """The JSON that a GET gives.

        Raises:
            SearchError: see `post`.
        """
        return await self._call("GET", path, params=params)

    async def post(self, path: str, *, json: Any = None, form: aiohttp.FormData | None = None) -> Any:
        """The JSON that a POST gives.

        Raises:
            SearchError: `KEY_REFUSED`, `QUOTA_SPENT`, `RATE_LIMITED`, `UNAVAILABLE`, `TIMEOUT`, `TOO_LARGE`,
                `BAD_RESPONSE`; `BLOCKED` where the service refuses the request as such.
        """
        return await self._call("POST", path, json=json, data=form)

    async def close(self) -> None:
        """Close the connections; the next call opens them again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # calls at once are the caller's to bound, as time is
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),  # no search may depend on those before it
            )
        return self._session

    async def _call(self, method: str, path: str, **request: Any) -> Any:
        try:
            # A redirect would carry the key to another host.
            call = self._connected().request(method, self.url + path, allow_redirects=False, **request)
            async with call as response:
                body = await self._read(response)
        except TimeoutError:
            raise SearchError(FailureKind.TIMEOUT, "the service did not answer in time") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise SearchError(FailureKind.UNAVAILABLE, "its address does not begin with http:// or https://") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise SearchError(FailureKind.UNAVAILABLE, f"the service is not there: {type(error).__name__}") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise SearchError(FailureKind.BAD_RESPONSE, f"the answer is broken: {type(error).__name__}") from None
        if response.status != 200:
            raise self._refusal(response, body)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise SearchError(FailureKind.BAD_RESPONSE, "the answer is no JSON") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for part in response.content.iter_chunked(_CHUNK):
            body += part
            count_bytes(len(part))
            if len(body) > self._max_bytes:  # the Content-Length may be missing, or a lie
                raise SearchError(FailureKind.TOO_LARGE, f"the answer is longer than {self._max_bytes} bytes")
        return bytes(body)

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> SearchError:
        error = refusal(response.status, seconds_of(response.headers.get("Retry-After")))
        words = body[:10_000].decode("utf-8", "replace").lower()
        if error.failure.kind is FailureKind.RATE_LIMITED and self._quota_words and self._quota_words in words:
            return SearchError(FailureKind.QUOTA_SPENT, error.failure.message, retry_after=error.retry_after)
        return error


def check_url(url: str, example: str) -> None:
    """
    Raises:
        UserError: it is no address that is spoken to by HTTP; `example` is one.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        fine = False
    if not fine:
        bare = re.fullmatch(r"[\w.-]+(:\d+)?(/.*)?", url)
        hint = "; http:// or https:// is missing before it" if bare else ""
        raise UserError(f"{shortened(url, 200)} is no address of a server, such as {example}{hint}")


def check_address(url: str) -> None:
    """
    Raises:
        UserError: it is no address of a server, or holds a password.
    """
    check_url(url, "http://127.0.0.1:9200")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UserError("the address holds a name or a password: keys are read from the environment alone")
    if parts.query:
        raise UserError(f"{shortened(url, 200)} is no address of a server: it holds a query")


def refusal(status: int, retry_after: float | None = None) -> SearchError:
    """What a service's answer with a status other than 200 means."""
    kind = _KINDS.get(status, FailureKind.UNAVAILABLE if status >= 500 else FailureKind.BLOCKED)
    return SearchError(kind, f"the service answered HTTP {status}", retry_after=retry_after)


def seconds_of(retry_after: str | None) -> float | None:
    """A `Retry-After` header (RFC 9110, 10.2.3) in seconds from now; None where there is none that can be read."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
