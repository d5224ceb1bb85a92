"""Rows that a rule could score nothing by, found while they are read: nobody is paid for them by mistake."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.answers import Scoring
from mmsearch_trl.data.rows import Row, RowError, in_waves


_ROWS_AT_A_TIME = 32


def with_usable_answers(rows: Iterable[Row | RowError], path: Path, scoring: Scoring) -> Iterator[Row | RowError]:
    """Rows, with an error for each whose gold answers, or whose further columns, a rule refuses.

    Args:
        path: The source, for messages.
    """
    if scoring.check_columns is not None:
        rows = _checked(rows, path, scoring.check_columns)
    if scoring.unusable is None:
        yield from rows
        return
    for some in in_waves(rows, _ROWS_AT_A_TIME):
        scored = [row for row in some if isinstance(row, Row) and row.answers]
        refused = {
            scored[number].place: why for number, why in scoring.unusable([row.answers for row in scored]).items()
        }
        yield from (RowError(path, row.place, refused[row.place]) if row.place in refused else row for row in some)


def _checked(
    rows: Iterable[Row | RowError], path: Path, check: Callable[[Mapping[str, Any]], None]
) -> Iterator[Row | RowError]:
    for row in rows:
        try:
            if isinstance(row, Row):
                check(row.extra)
            yield row
        except UserError as error:
            yield RowError(path, row.place, str(error))
