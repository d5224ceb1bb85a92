"""Text that is read line by line, as data, demonstrations and queries are: how lines are found, and what a line is.

Text is UTF-8. A line ends in LF or CRLF; a byte order mark before it is no part of it (editors write one, and joined
files hold several); blank lines are passed over. What is wrong with one line is an error of that line, so that a
caller may leave it out; a file in another encoding, or a compressed one, is an error of the file.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError


_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line that is not blank: its number (from 1), the offset of its first byte in the file, and its bytes."""

    number: int
    offset: int
    raw: bytes

    def text(self) -> str:
        """
        Raises:
            UserError: it is not UTF-8.
        """
        try:
            return self.raw.removeprefix(_MARK).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text: {error}") from error

    def object(self) -> dict[str, Any]:
        """The object of a line of JSON.

        Raises:
            UserError: it is not UTF-8, no JSON, no object, or one that has a key twice.
        """
        cells = decoded(self.text())
        if not isinstance(cells, dict):
            raise UserError(f"expected a JSON object, got a {type(cells).__name__}; a file holds one object a line")
        return cells


def decoded(text: str) -> Any:
    """What a text of JSON holds.

    Raises:
        UserError: it is no JSON, holds half of a surrogate pair, or an object in it has a key twice.
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:  # half of a surrogate pair is JSON, and no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from error
    return value


def read_lines(path: Path) -> Iterator[Line]:
    """
    Raises:
        UserError: the file cannot be read, or is no UTF-8 text.
    """
    offset = 0
    with reading(path), path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1 and b"\0" in raw:
                raise UserError(f"{path}: no UTF-8 text, but UTF-16 or compressed: save it as plain UTF-8")
            if raw.removeprefix(_MARK).strip():
                yield Line(number, offset, raw)
            offset += len(raw)


def read_line(path: Path, number: int, offset: int) -> Line:
    """The line that `read_lines` found there."""
    with reading(path), path.open("rb") as lines:
        lines.seek(offset)
        return Line(number, offset, lines.readline())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UserError(f"the key {twice!r:.80} stands there twice")
    return cells


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
