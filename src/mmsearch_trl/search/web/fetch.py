"""The one client for everything whose address comes from a page, a hit or a model.

Every address is checked before it is dialled (`address_rules.py`, `addresses.py`), every redirect again. Time, bytes
on the wire and bytes after decompression are bounded while they arrive, and the kind of content is one that the caller
asked for: a page cannot make this process ask another machine of the local network, fill its memory, or hold it up.

No credential, cookie or proxy of this machine is ever used, and an address is never part of a message: it may hold a
key.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

import aiohttp
from yarl import URL

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.cost import count_bytes
from mmsearch_trl.search.web.address_rules import PORTS, AddressRules, parsed
from mmsearch_trl.search.web.addresses import GuardedResolver, Lookup, is_public


TEXT_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown")
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")

MAX_REDIRECTS = 10
_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_FAILURES = {
    401: FailureKind.BLOCKED,
    403: FailureKind.BLOCKED,
    408: FailureKind.TIMEOUT,
    429: FailureKind.RATE_LIMITED,
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address gave.

    Attributes:
        url: Where it was found, redirects followed.
        content_type: Media type, one of those asked for.
        charset: Of text, as the server told it; None where it did not.
    """

    url: str
    content_type: str
    charset: str | None
    body: bytes


class Fetcher:
    """Fetches from the web.

    Args:
        timeout_s: Seconds from the call to the last byte, redirects included.
        max_bytes: Most bytes of an answer, on the wire and decompressed.
        denied_hosts: Hosts that are not asked, with all that is below them (`AddressRules`).
        allowed: Says of an address whether it may be dialled.
        lookup: Finds the addresses of a name; the operating system's by default.
        ports: The ports that may be asked; None for all.

    Raises:
        UserError: an entry of `denied_hosts` names no host.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 5.0,
        max_bytes: int = 4_000_000,
        denied_hosts: Collection[str] = (),
        allowed: Callable[[str], bool] = is_public,
        lookup: Lookup | None = None,
        ports: Collection[int] | None = PORTS,
    ) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self.rules = AddressRules(denied_hosts, allowed=allowed, ports=ports)
        self._allowed = allowed
        self._lookup = lookup
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str, types: Collection[str]) -> Fetched:
        """Fetch what lies at an address.

        Args:
            types: Media types that are wanted, such as `TEXT_TYPES`; anything else is refused.

        Raises:
            SearchError: `BLOCKED`, `TOO_LARGE`, `TIMEOUT`, `RATE_LIMITED`, `UNAVAILABLE` or `BAD_RESPONSE`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url, types)
        # Of what else is raised, only the type is told: its text may hold the address.
        except TimeoutError:
            raise SearchError(FailureKind.TIMEOUT, f"the host did not answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise SearchError(FailureKind.UNAVAILABLE, f"the host cannot be reached: {type(error).__name__}") from None
        except (aiohttp.ClientError, ValueError, zlib.error) as error:
            raise SearchError(FailureKind.BAD_RESPONSE, f"the answer is broken: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close the connections; the next fetch opens them again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = GuardedResolver(self._allowed, self._lookup)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "gzip, deflate", "User-Agent": "mmsearch-trl"},
                auto_decompress=False,  # it would decompress without a bound
                timeout=aiohttp.ClientTimeout(total=None),  # `fetch` bounds all of it
                trust_env=False,  # a proxy would look names up itself, unchecked
            )
        return self._session

    async def _follow(self, url: str, types: Collection[str]) -> Fetched:
        target = self.rules.check(url)
        for _ in range(MAX_REDIRECTS + 1):
            async with self._connected().get(target, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, target, types)
                where = response.headers.get("Location", "")  # its body is not read
            target = self.rules.check(str(target.join(parsed(where))))
        raise SearchError(FailureKind.BLOCKED, f"it is redirected more than {MAX_REDIRECTS} times")

    async def _read(self, response: aiohttp.ClientResponse, target: URL, types: Collection[str]) -> Fetched:
        if response.status != 200:
            kind = _FAILURES.get(response.status, FailureKind.UNAVAILABLE)
            raise SearchError(kind, f"the host answered HTTP {response.status}")
        # Without the header aiohttp would say application/octet-stream.
        content_type = response.content_type if "Content-Type" in response.headers else "none"
        if content_type not in types:
            raise SearchError(FailureKind.BAD_RESPONSE, f"the content type is {content_type[:80]!r}")
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large()
        coding = response.headers.get("Content-Encoding", "identity").lower()
        body = b"".join([part async for part in self._decoded(response, coding)])
        return Fetched(str(target), content_type, response.charset, body)

    async def _decoded(self, response: aiohttp.ClientResponse, coding: str) -> AsyncIterator[bytes]:
        """The body as it arrives, never more of it than is allowed."""
        decoder = _decoder(coding)
        wire = decoded = 0
        async for raw in response.content.iter_chunked(_CHUNK):
            wire += len(raw)
            count_bytes(len(raw))
            part = raw if decoder is None else decoder.decompress(raw, self._max_bytes - decoded + 1)
            decoded += len(part)
            if max(wire, decoded) > self._max_bytes:
                raise self._too_large()
            yield part
        if decoder is not None and not decoder.eof:
            raise SearchError(FailureKind.BAD_RESPONSE, "the compressed answer is cut off")

    def _too_large(self) -> SearchError:
        return SearchError(FailureKind.TOO_LARGE, f"the answer is longer than {self._max_bytes} bytes")


class _Inflater:
    """Deflate as HTTP means it, with zlib's header, and as some servers send it, without."""

    def __init__(self) -> None:
        self._inner: zlib._Decompress | None = None

    def decompress(self, data: bytes, most: int) -> bytes:
        if self._inner is None:
            self._inner = zlib.decompressobj()
            try:
                return self._inner.decompress(data, most)
            except zlib.error:
                self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
        return self._inner.decompress(data, most)

    @property
    def eof(self) -> bool:
        return self._inner is not None and self._inner.eof


def _decoder(coding: str) -> "zlib._Decompress | _Inflater | None":
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip"):
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    if coding == "deflate":
        return _Inflater()
    raise SearchError(FailureKind.BAD_RESPONSE, f"the content coding is {coding[:80]!r}")
