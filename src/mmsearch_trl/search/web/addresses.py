"""Which hosts may be asked for something that came from a page, a hit or a model: public ones only.

A name is looked up once, every address it has must be public, and the connection goes to an address that was checked:
a name that answers differently the second time (DNS rebinding) gains nothing. The name stays what TLS verifies and
what the `Host` header says.
"""

import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.threads import call_blocking


_EMBEDDING = tuple(
    # IPv6 addresses that lead to an IPv4 one: mapped and compatible, translated (NAT64), 6to4.
    map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16"))
)
_RESERVED: tuple[IPv4Network | IPv6Network, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15")),
    # Name servers for private ranges (AS112), and relays of multicast.
    *map(IPv4Network, ("192.31.196.0/24", "192.175.48.0/24", "192.52.193.0/24")),
    *map(IPv6Network, ("100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10")),
    *map(IPv6Network, ("100:0:0:1::/64", "2620:4f:8000::/48")),
    # Azure answers a machine of its own there with its configuration and its names; to all others it is nobody's.
    IPv4Network("168.63.129.16/32"),
)
_ISATAP = (0x00005EFE, 0x02005EFE)
"""In the third quarter of an IPv6 address: the last one is an IPv4 address, whatever the network."""
_NUMERIC_END = re.compile(r"(\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name, for a port."""


def is_public(address: str) -> bool:
    """Whether an address is one that anybody on the internet could be asked at; False for what is no address.

    Special ranges are refused whole, also where they might lead to a public host: IPv6 addresses that hold an IPv4
    address inside, multicast, documentation, benchmarks.
    """
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    if not parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        return False
    if parsed.version == 6 and int(parsed) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(parsed.version == net.version and parsed in net for net in (*_EMBEDDING, *_RESERVED))


def check_host(host: str, allowed: Callable[[str], bool] = is_public) -> None:
    """Refuse a host that is an address which is not allowed, or that something down the line may take for one.

    `127.1`, `2130706433` and `0x7f.1` are addresses to a C library and names to Python.

    Raises:
        SearchError: `BLOCKED`.
    """
    bare = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(bare)
    except ValueError:
        last = bare.rstrip(".").rpartition(".")[2]
        if not bare.strip(".") or ":" in bare or "%" in bare or _NUMERIC_END.fullmatch(last):
            raise SearchError(FailureKind.BLOCKED, "the host is no proper name or address") from None
        return
    if not allowed(bare):
        raise SearchError(FailureKind.BLOCKED, "the address is not a public one")


class GuardedResolver(AbstractResolver):
    """Looks names up for aiohttp, which dials what it is given here.

    Args:
        allowed: Says of an address whether it may be dialled.
        lookup: Finds addresses; the operating system's by default.
    """

    def __init__(self, allowed: Callable[[str], bool] = is_public, lookup: Lookup | None = None) -> None:
        self._allowed = allowed
        self._lookup = lookup or _system_lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """
        Raises:
            OSError: the name has no address.
            SearchError: `BLOCKED`: one of its addresses is not allowed, whatever the others are.
        """
        check_host(host, self._allowed)
        addresses = await self._lookup(host, port)
        if not addresses:
            raise OSError("the name has no address")  # aiohttp takes an empty list for its own mistake
        if not all(map(self._allowed, addresses)):
            raise SearchError(FailureKind.BLOCKED, "the host's address is not a public one")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _system_lookup(host: str, port: int) -> Sequence[str]:
    found = await call_blocking(partial(socket.getaddrinfo, type=socket.SOCK_STREAM), host, port)
    return [str(where[0]) for *_, where in found]
