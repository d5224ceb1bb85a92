"""Passages that another search engine stores: where they are, and how a stored object becomes a hit."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import TextHit


def server_and_name(address: str) -> tuple[str, str]:
    """`http://host:9200/wiki` as the server and the name of what is searched there.

    Raises:
        UserError: it is no such address, or holds a password.
    """
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise UserError("the address holds a name or a password: keys are read from the environment alone")
    server, _, name = address.rstrip("/").rpartition("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or server.endswith("/") or parts.query:
        raise UserError(f"{address} is no address of something to search, such as http://127.0.0.1:9200/NAME")
    return server, name


def hit_of(fields: Mapping[str, Any], score: float | None, name: str | int) -> TextHit:
    """A hit of an object that holds `contents` (the title is the first line, as in Search-R1's corpora), or `text` and
    perhaps `title`; and perhaps `url` and `id`, for which `name` stands in.

    Raises:
        KeyError: it holds neither text.
        TypeError: one of them is no text.
    """
    if "contents" in fields:
        title, newline, text = fields["contents"].partition("\n")
        title, text = (title, text) if newline else ("", title)
    else:
        title, text = fields.get("title") or "", fields["text"]
    if not isinstance(title, str) or not isinstance(text, str):
        raise TypeError("a stored passage is no text")
    url, number = fields.get("url"), fields.get("id", name)
    return TextHit(
        title=title,
        text=text,
        url=url if isinstance(url, str) else None,
        score=None if score is None else float(score),
        id=str(number),
    )
