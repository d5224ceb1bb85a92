"""Passages that another search engine stores: its address, and how a stored object becomes a hit."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.text.passages import title_and_text


def check_address(url: str) -> None:
    """
    Raises:
        UserError: it is no address of a server, or holds a password.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UserError("the address holds a name or a password: keys are read from the environment alone")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UserError(f"{url} is no address of a server, such as http://127.0.0.1:9200")


def hit_of(fields: Mapping[str, Any], score: float | None, name: str | int) -> TextHit:
    """A hit of an object that holds `contents` (the title is the first line, as in Search-R1's corpora), or `text` and
    perhaps `title`; and perhaps `url` and `id`, for which `name` stands in.

    Raises:
        KeyError: it holds neither text.
        TypeError: one of them is no text.
    """
    if "contents" in fields:
        title, text = title_and_text(fields["contents"])
    else:
        title, text = fields.get("title") or "", fields["text"]
    if not isinstance(title, str) or not isinstance(text, str):
        raise TypeError("a stored passage is no text")
    url, number = fields.get("url"), fields.get("id", name)
    return TextHit(
        title=title,
        text=text,
        url=url if isinstance(url, str) else None,
        score=score,
        id=str(number),
    )
