"""Gold answers that a rule could score nothing by, found while rows are read: nobody is paid for them by mistake."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from mmsearch_trl.data.answers import Scoring
from mmsearch_trl.data.rows import Row, RowError


_ROWS_AT_A_TIME = 32


def with_usable_answers(rows: Iterable[Row | RowError], path: Path, scoring: Scoring) -> Iterator[Row | RowError]:
    """Rows, with an error for each whose gold answers a rule refuses.

    Args:
        path: The source, for messages.
    """
    if scoring.unusable is None:
        yield from rows
        return
    waiting = iter(rows)
    while some := list(islice(waiting, _ROWS_AT_A_TIME)):
        scored = [row for row in some if isinstance(row, Row) and row.answers]
        refused = {
            scored[number].place: why for number, why in scoring.unusable([row.answers for row in scored]).items()
        }
        yield from (RowError(path, row.place, refused[row.place]) if row.place in refused else row for row in some)
