"""Rows of the files that indexes are built from; every error names the file and the line.

A row that cannot be used ends the build, or is passed over and counted, as the caller of the build has it.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.corpus_file import is_parquet, lines, parquet_rows


logger = logging.getLogger(__name__)

OnBadRow = Literal["raise", "skip"]
ResultT = TypeVar("ResultT")

_KEYS_SHOWN = 12


class Row(NamedTuple):
    file: Path
    line: int
    values: dict[str, Any]

    def error(self, message: str) -> UserError:
        """What is wrong with the row, with its place: `file:line: message`."""
        return UserError(f"{self.file}:{self.line}: {message}")

    def text(self, key: str, default: str | None = None) -> str:
        """The string under `key`; `default` where the key is absent or null.

        Raises:
            UserError: the value is no string, or is absent and has no default.
        """
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, str):
            found = f"is {type(value).__name__}" if self.values.get(key) is not None else "is missing"
            keys = [name[:40] for name in sorted(self.values)[:_KEYS_SHOWN]]
            raise self.error(f"key {key!r} {found}; a string is needed (the row has {keys})")
        return value


class BadRows:
    """What becomes of rows that cannot be used: the first ends the build, or all are passed over and counted."""

    def __init__(self, on_bad_row: OnBadRow = "raise") -> None:
        self._skip = on_bad_row == "skip"
        self.count = 0
        self.first = ""
        """What is wrong with the first, with its place."""

    def add(self, error: UserError) -> None:
        """
        Raises:
            UserError: `error`, where none may be passed over.
        """
        if not self._skip:
            raise UserError(f"{error} (`--on_bad_row skip` passes over what cannot be used)") from error
        self.count += 1
        self.first = self.first or str(error)

    def log(self) -> None:
        if self.count:
            logger.warning("%d bad rows were passed over; the first: %s", self.count, self.first)

    def nothing(self, source: Path, what: str) -> UserError:
        """That a source holds nothing to index, and what is wrong with the first that was passed over."""
        more = f": {self.count} bad rows were passed over; the first: {self.first}" if self.count else ""
        return UserError(f"{source}: no {what} was found{more}")


def read_rows(path: Path, bad: BadRows | None = None) -> Iterator[Row]:
    """The rows of a corpus, whichever way it lies there (`corpus_file.py`); by default the first bad one is an error.

    Raises:
        UserError: the file cannot be read; or a row is not an object, and none may be passed over.
    """
    bad = bad or BadRows()
    if is_parquet(path):
        for number, values in parquet_rows(path):
            yield Row(path, number, values)
        return
    for number, line in lines(path):
        try:
            row = Row(path, number, _parse(path, number, line))
        except UserError as error:
            bad.add(error)
            continue
        yield row


def usable(path: Path, read: Callable[[Row], ResultT], bad: BadRows) -> Iterator[ResultT]:
    """What `read` makes of each row of a corpus that it can use.

    Raises:
        UserError: see `read_rows`; or `read` refuses a row, and none may be passed over.
    """
    for row in read_rows(path, bad):
        try:
            result = read(row)
        except UserError as error:
            bad.add(error)
            continue
        yield result


def _parse(path: Path, line: int, raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{line}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}:{line}: a JSON object is needed, this is {type(values).__name__}")
    return values
