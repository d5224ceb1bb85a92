"""A port to listen on, taken before its address is told to anybody."""

import socket

from mmsearch_trl.core.errors import UserError


def listening_at(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address and does not listen yet; port 0 is any that is free.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} is no address of this machine ({error})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        why = error.strerror if isinstance(error, OSError) else str(error)
        to_do = "end what uses it, or choose another by --port"
        raise UserError(f"port {port} of {host} cannot be had ({why}): {to_do}") from error
    return bound
