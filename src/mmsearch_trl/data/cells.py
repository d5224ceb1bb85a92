"""A row as its file holds it, before anybody looks at what its columns mean."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmsearch_trl.core.errors import UserError


class Cells(NamedTuple):
    """
    Attributes:
        place: The row as a reader finds it: "row 3 (counted from 0)" or "line 4".
        values: By the names of the columns; or why the row cannot be read.
    """

    place: str
    values: Mapping[str, Any] | UserError


def row_place(number: int) -> str:
    return f"row {number} (counted from 0)"
