"""Rows of the JSONL files that indexes are built from; every error names the file and the line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmsearch_trl.core.errors import UserError


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
            raise self.error(f"key {key!r} {found}; a string is needed (the row has {sorted(self.values)})")
        return value


def read_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file (`.gz` is unpacked on the way), blank lines left out.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield Row(path, line, _parse(path, line, raw))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {line}: {error}") from error


def _parse(path: Path, line: int, raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{line}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}:{line}: a JSON object is needed, this is {type(values).__name__}")
    return values
