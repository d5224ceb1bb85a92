"""The readable text of a page, as a job of a process which may be killed over it (`core/worker.py`).

A page's characters are what browsers take them for (WHATWG's Encoding Standard): a byte order mark wins over the
server's word, that over the page's own; labels are those of the standard, and no other codec of Python's is used.
Where nobody says, the characters are guessed from the bytes.
"""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import webencodings


_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_DECLARED_WITHIN = 1024
"""Bytes of a page in which its own word is looked for."""


def job(body: bytes, charset: str | None, *, html: bool) -> bytes:
    """A page as a message: what the server says of it on a line, then the page."""
    return json.dumps({"charset": charset, "html": html}).encode() + b"\n" + body


def read(job: bytes) -> bytes:
    """Title and text of a page as JSON, "" where it has none, or the `error` of its parser. Runs in the worker.

    Raises:
        MemoryError: the page needs more than the process may take.
    """
    head, _, body = job.partition(b"\n")
    said = json.loads(head)
    try:
        text = _characters(body, said["charset"], html=said["html"])
        title, text = _readable(text) if said["html"] else ("", text)
    except MemoryError:
        raise
    except Exception as error:  # whatever a parser makes of a broken page
        return json.dumps({"error": type(error).__name__}).encode()
    return json.dumps({"title": title, "text": text}).encode()


def _readable(page: str) -> tuple[str, str]:
    """The article of a page without what stands around it."""
    import trafilatura

    document: Any = trafilatura.bare_extraction(page, with_metadata=True, include_comments=False)
    return ("", "") if document is None else (document.title or "", document.text or "")


def _characters(body: bytes, charset: str | None, *, html: bool) -> str:
    encoding = webencodings.lookup(charset) if charset else None
    if encoding is None and html:
        encoding = _declared(body[:_DECLARED_WITHIN])
    if encoding is None and not body.startswith(_BOMS):
        from trafilatura.utils import decode_file

        return decode_file(body)
    if encoding is not None and encoding.name == "replacement":  # what browsers refuse to decode
        return ""
    text, found = webencodings.decode(body, encoding or webencodings.UTF8)
    # The standard decodes GBK as what it is a part of.
    return body.decode("gb18030", "replace") if found.name == "gbk" else text


def _declared(head: bytes) -> webencodings.Encoding | None:
    parser = _Declaration()
    parser.feed(head.decode("latin-1"))
    encoding = webencodings.lookup(parser.label) if parser.label else None
    # It could not have been read if it were in UTF-16.
    return webencodings.UTF8 if encoding is not None and encoding.name.startswith("utf-16") else encoding


class _Declaration(HTMLParser):
    """Finds the character set that a page declares."""

    label = ""

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag != "meta" or self.label:
            return
        if "charset" in values:
            self.label = values["charset"]
        elif values.get("http-equiv", "").lower() == "content-type":
            self.label = _value_of("charset", values.get("content", ""))

    def handle_pi(self, data: str) -> None:
        if data.startswith("xml ") and not self.label:
            self.label = _value_of("encoding", data)


def _value_of(name: str, text: str) -> str:
    """What stands behind `name=`, with or without quotes."""
    _, _, rest = text.lower().partition(name)
    value = rest.lstrip().removeprefix("=").lstrip()
    quote = value[:1]
    if quote in ("'", '"'):
        return value[1:].partition(quote)[0]
    return value.replace(";", " ").partition(" ")[0]
