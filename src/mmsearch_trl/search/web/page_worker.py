"""A process that turns HTML into text: `python -m mmsearch_trl.search.web.page_worker`, started by `page_text.py`.

Parsers of other people's HTML can burn a processor for minutes and gigabytes of memory. Here that hurts nobody: the
process may take so much memory and no more, has no key in its environment, and is killed when it is late.

Jobs come in on standard input and answers go out on standard output, each a length and so many bytes.
"""

import codecs
import json
import resource
import struct
import sys
from typing import Any, BinaryIO


LENGTH = struct.Struct("<I")
_MEMORY = 1 << 30
_CHARSET_BYTES = 40


def send(stream: BinaryIO, message: bytes) -> None:
    stream.write(LENGTH.pack(len(message)) + message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    return _exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0])


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def job(html: bytes, charset: str | None) -> bytes:
    """A page as a message."""
    return (charset or "").encode("ascii", "ignore")[:_CHARSET_BYTES].ljust(_CHARSET_BYTES) + html


def readable(html: bytes, charset: str | None) -> tuple[str, str]:
    """Title and text of a page, "" where it has none: the article without what stands around it."""
    import trafilatura

    source: bytes | str = html
    if charset is not None:
        source = html.decode(charset, "replace")
    document: Any = trafilatura.bare_extraction(source, with_metadata=True, include_comments=False)
    return ("", "") if document is None else (document.title or "", document.text or "")


def _known(charset: str) -> str | None:
    """A character set that Python can decode; None lets the parser find out."""
    try:
        return codecs.lookup(charset).name if charset else None
    except LookupError:
        return None


def _answer(message: bytes) -> bytes:
    charset = _known(message[:_CHARSET_BYTES].decode("ascii").strip())
    try:
        title, text = readable(message[_CHARSET_BYTES:], charset)
    except MemoryError:
        raise
    except Exception as error:  # whatever a parser makes of a broken page
        return json.dumps({"error": type(error).__name__}).encode()
    return json.dumps({"title": title, "text": text}).encode()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that a library prints may get between the answers
    while True:
        try:
            message = receive(sys.stdin.buffer)
        except EOFError:
            return
        send(answers, _answer(message))


if __name__ == "__main__":
    main()
