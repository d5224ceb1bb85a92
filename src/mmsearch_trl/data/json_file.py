"""`.json` files: one list of objects, an object with one such list in it, or lines of JSON under another name.

A list is taken apart object by object, so that what is wrong with one is an error of that row; the text of the file is
held in memory, its objects are not.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.json_lines import decoded, read_lines
from mmsearch_trl.data.cells import Cells, row_place


_BLANKS = " \t\r\n"
_PLAIN = json.JSONDecoder()


def read_json_lines(path: Path) -> Iterator[Cells]:
    """
    Raises:
        UserError: the file cannot be read, or is no UTF-8 text.
    """
    for line in read_lines(path):
        try:
            yield Cells(f"line {line.number}", line.object())
        except UserError as error:
            yield Cells(f"line {line.number}", error)


def read_json(path: Path) -> Iterator[Cells]:
    """
    Raises:
        UserError: the file cannot be read, is no UTF-8 text, or holds no list of rows.
    """
    first = next(read_lines(path), None)
    if first is None:
        return
    start = first.raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"{" and _is_object(first.raw):
        yield from read_json_lines(path)
        return
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    if start == b"[":
        yield from _listed(text, path)
        return
    try:
        rows = _only_list(decoded(text))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for number, row in enumerate(rows):
        yield Cells(row_place(number), row)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.removeprefix(b"\xef\xbb\xbf")), dict)
    except (ValueError, RecursionError):
        return False


def _only_list(value: Any) -> list[Any]:
    """The one list of objects that an object holds."""
    lists = [
        each
        for each in (value.values() if isinstance(value, dict) else ())
        if isinstance(each, list) and each and all(isinstance(row, dict) for row in each)
    ]
    if len(lists) != 1:
        keys = shortened(", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__, 300)
        raise UserError(
            f"expected a list of objects, an object with one such list, or an object a line; found {keys or 'nothing'}"
        )
    return lists[0]


def _listed(text: str, path: Path) -> Iterator[Cells]:
    place, number = _past_blanks(text, text.index("[") + 1), 0
    while text[place : place + 1] != "]":
        try:
            _, end = _PLAIN.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, {row_place(number)}: not JSON, nor can what follows be read: {error}") from error
        yield Cells(row_place(number), _object(text[place:end]))
        place, number = _past_blanks(text, end), number + 1
        if text[place : place + 1] == ",":
            place = _past_blanks(text, place + 1)
        elif text[place : place + 1] != "]":
            raise UserError(f"{path}: the list is not closed after {row_place(number - 1)}: the file is cut off")
    if text[place + 1 :].strip(_BLANKS):
        raise UserError(f"{path}: more text follows the list of {number} rows")


def _object(text: str) -> dict[str, Any] | UserError:
    try:
        value = decoded(text)
    except UserError as error:
        return error
    if not isinstance(value, dict):
        return UserError(f"expected a JSON object, got a {type(value).__name__}")
    return value


def _past_blanks(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _BLANKS:
        place += 1
    return place
