"""Which addresses may be read, by whoever reads them: this machine (`fetch.py`) or a service that is asked to.

An address is told by its text alone here; where a name leads is looked up by who dials it (`addresses.py`).
"""

from collections.abc import Callable, Collection
from ipaddress import ip_address

from yarl import URL

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.web.addresses import check_host, is_public


_MAX_ADDRESS = 4000
PORTS = (80, 443)


class AddressRules:
    """
    Args:
        denied_hosts: Hosts that are not asked, with all that is below them: a data set's own site holds its answers.
            An entry may be written as an address or a pattern: `https://Example.org:8080/a` and `*.example.org` mean
            `example.org`.
        allowed: Says of a host that is an address whether it may be dialled.
        ports: The ports that may be asked; None for all.

    Raises:
        UserError: an entry names no host.
    """

    def __init__(
        self,
        denied_hosts: Collection[str] = (),
        *,
        allowed: Callable[[str], bool] = is_public,
        ports: Collection[int] | None = PORTS,
    ) -> None:
        self.denied = tuple(sorted({denied_host(entry) for entry in denied_hosts}))
        self._allowed = allowed
        self._ports = ports

    def check(self, url: str) -> URL:
        """An address that may be read as far as its text tells.

        Raises:
            SearchError: `BLOCKED`.
        """
        target = parsed(url)
        if target.scheme not in ("http", "https"):
            raise SearchError(FailureKind.BLOCKED, "the address is not one of http or https")
        if target.user is not None or target.password is not None:
            raise SearchError(FailureKind.BLOCKED, "the address holds a user name or password")
        if self._ports is not None and target.port not in self._ports:
            raise SearchError(FailureKind.BLOCKED, "the address names an unusual port")
        host = target.raw_host or ""
        check_host(host.lower(), self._allowed)
        if any(f".{_plain(host)}".endswith(f".{denied}") for denied in self.denied):
            raise SearchError(FailureKind.BLOCKED, "the host is one of `denied_hosts`")
        return target.with_fragment(None)


def parsed(url: str) -> URL:
    """
    Raises:
        SearchError: `BLOCKED`: it is no address.
    """
    if not url or len(url) > _MAX_ADDRESS or any(ord(char) < 0x20 or ord(char) == 0x7F for char in url):
        raise SearchError(FailureKind.BLOCKED, "the address is empty, too long, or holds control characters")
    try:
        return URL(url)
    except (ValueError, UnicodeError):
        raise SearchError(FailureKind.BLOCKED, "the address cannot be read") from None


def denied_host(entry: str) -> str:
    """The host that an entry of `denied_hosts` names, as it stands in an address.

    Raises:
        UserError: it names none.
    """
    rest = entry.strip().rpartition("://")[2].removeprefix("*.").lstrip(".")
    try:
        host = rest if _is_address(rest) else URL(f"http://{rest}").raw_host
    except (ValueError, UnicodeError):
        host = None
    if not host or not (host := _plain(host)) or "*" in host or any(char.isspace() for char in host):
        raise UserError(f"search.denied_hosts: {entry[:80]!r} names no host: write it as example.org")
    return host


def _plain(host: str) -> str:
    """A host as it is compared: letters in lower case, an address in its shortest form."""
    bare = host.lower().strip("[].")
    return str(ip_address(bare)) if _is_address(bare) else bare


def _is_address(text: str) -> bool:
    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
