"""Passages that another search engine stores: how a stored object becomes a hit."""

from collections.abc import Mapping
from typing import Any

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.text.passages import title_and_text


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
