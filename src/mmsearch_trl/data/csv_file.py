"""`.csv` and `.tsv` files. Cells are the texts that stand there: `007`, `NA` and `1.0` are answers and no numbers."""

import csv
from collections.abc import Iterator
from pathlib import Path

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.cells import Cells


_LONGEST_CELL = 1 << 30
"""Bytes; an image in base64 may stand in one."""


def read_csv(path: Path) -> Iterator[Cells]:
    """Rows by the names in the first line; an empty cell is None.

    Raises:
        UserError: the file cannot be read, is no UTF-8 text, or begins with no line of names.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with reading(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, delimiter=_delimiter(path), strict=True)
        names = _header(rows, path)
        while True:
            place = f"line {rows.line_num + 1}"
            try:
                cells = next(rows, None)
            except csv.Error as error:
                yield Cells(place, UserError(f"not {path.suffix[1:].upper()}: {error}"))
                continue
            if cells is None:
                return
            if cells:
                yield Cells(place, _named(names, cells))


def _named(names: list[str], cells: list[str]) -> dict[str, str | None] | UserError:
    if len(cells) != len(names):
        return UserError(f"{len(cells)} cells under {len(names)} names: a cell with a delimiter needs quotes")
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:  # a byte that `surrogateescape` stood in for
        return UserError("not UTF-8 text")
    return dict(zip(names, (cell or None for cell in cells), strict=True))


def _header(rows: Iterator[list[str]], path: Path) -> list[str]:
    try:
        names = next(rows, [])
    except csv.Error as error:
        raise UserError(f"{path}: the first line does not hold names of columns: {error}") from error
    if any("\0" in name for name in names):
        raise UserError(f"{path}: no UTF-8 text, but UTF-16 or compressed: save it as plain UTF-8")
    if not names or not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise UserError(f"{path}: the first line must name each column once, got {', '.join(names)!r:.200}")
    return names


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","
