"""No address that a page can name leads into the local network."""

import asyncio
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.web.addresses import GuardedResolver, check_host, is_public
from mmsearch_trl.search.web.fetch import TEXT_TYPES, Fetcher


PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "151.101.1.140", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
CLOSED = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "169.254.170.2", "100.64.0.1", "100.100.100.200", "0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.7",
    "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1",
    "2001:db8::1", "100::1", "2001::1", "2001:10::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:7f00:1",
    "::127.0.0.1", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::",
    "168.63.129.16", "::ffff:168.63.129.16", "::ffff:a83f:8110", "64:ff9b::a83f:8110", "2002:a83f:8110::",
    "fd20:ce::254", "::168.63.129.16", "169.254.0.23", "192.0.0.192", "2600::5efe:a83f:8110", "2600::200:5efe:7f00:1",
    "192.31.196.1", "192.175.48.1", "192.52.193.1", "2620:4f:8000::1", "2001:4:112::1", "100:0:0:1::1",
    "2002:c0a8:101::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "3fff::1", "5f00::1", "::ffff:0:127.0.0.1",
]  # fmt: skip
HOSTS = [
    "", ".", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.1.",
    "0", "0x", "1", "[::1]", "::1", "[fe80::1%25eth0]", "fe80::1%eth0", "example.123", "a.0x7f", "10.0.0.1",
    "[::ffff:127.0.0.1]", "169.254.169.254", "256.256.256.256", "1.2.3.4.5", "1..1.1.1", "09.1.1.1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_one(address: str) -> None:
    assert is_public(address)
    check_host(f"[{address}]" if ":" in address else address)


@pytest.mark.parametrize("address", CLOSED)
def test_a_special_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_may_be_taken_for_such_an_address_is_refused(host: str) -> None:
    with pytest.raises(SearchError) as caught:
        check_host(host)
    assert caught.value.failure.kind is FailureKind.BLOCKED


@pytest.mark.parametrize("host", ["example.org", "xn--bcher-kva.example", "0x7f.example", "1.example.com", "a-b.co."])
def test_a_name_is_looked_up(host: str) -> None:
    check_host(host)


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_becomes_public_inside_an_ipv6_one(address) -> None:
    inside = int(address)
    for base in ("::", "::ffff:0:0", "64:ff9b::"):
        assert not is_public(str(IPv6Address(int(IPv6Address(base)) | inside)))
    assert not is_public(str(IPv6Address((0x2002 << 112) | inside << 80)))


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(address) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(str(address))


@given(st.text(max_size=40))
def test_no_text_makes_the_check_raise_anything_but_a_refusal(host: str) -> None:
    try:
        check_host(host)
    except SearchError as error:
        assert error.failure.kind is FailureKind.BLOCKED
    else:
        assert not _numeric(host)


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["2606:4700:4700::1111", "::1"], ["nonsense"]]
)
def test_a_name_with_one_closed_address_is_refused_whatever_the_others_are(addresses: list[str]) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return addresses

    with pytest.raises(SearchError) as caught:
        asyncio.run(GuardedResolver(lookup=lookup).resolve("pages.example", 80))
    assert caught.value.failure.kind is FailureKind.BLOCKED


def test_a_name_without_an_address_is_not_there() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return []

    async def fetch() -> None:
        fetcher = Fetcher(lookup=lookup)
        try:
            await fetcher.fetch("http://pages.example/", TEXT_TYPES)
        finally:
            await fetcher.close()

    with pytest.raises(SearchError) as caught:
        asyncio.run(fetch())
    assert caught.value.failure.kind is FailureKind.UNAVAILABLE


def test_the_system_s_own_names_for_this_machine_are_refused() -> None:
    for host in ("localhost", "localhost.localdomain", "ip6-localhost"):
        with pytest.raises((SearchError, OSError)):
            asyncio.run(GuardedResolver().resolve(host, 80))


def _numeric(host: str) -> bool:
    try:
        return ip_address(host) in ip_network("127.0.0.0/8")
    except (ValueError, TypeError):
        return False
