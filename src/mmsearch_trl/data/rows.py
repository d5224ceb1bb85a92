"""A row as a file holds it: checked, with its images still encoded; and what happens to a row that is no good.

A reader yields, for every row of a file, either a `Row` or a `RowError`. It never raises for one bad row, so that the
caller decides: `accepted` raises the error, or counts it in a `SkippedRows` and goes on.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.message import Message
from mmsearch_trl.data.image_cells import ImageSource
from mmsearch_trl.rewards.answers import is_missing, number_text


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


class RowError(UserError):
    """One row cannot be used. `place` is the row as a reader finds it: "row 3 (from 0)" or "line 4"."""

    def __init__(self, path: Path, place: str, reason: str) -> None:
        self.path = path
        self.place = place
        self.reason = shortened(reason)
        super().__init__(f"{path}, {place}: {self.reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question before its images are decoded; the other fields are those of `Task`.

    Attributes:
        place: Where the row stands in its file, for messages.
        images: Encoded bytes, paths of files, addresses, or images, in the order in which the model sees them.
    """

    place: str
    id: str
    question: str
    images: tuple[ImageSource, ...]
    answers: tuple[str, ...]
    data_source: str
    image_url: str | None = None
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()


@dataclass(slots=True)
class SkippedRows:
    """The rows that were left out of a file or of several, with the reason for each."""

    errors: list[RowError] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.errors)

    def log(self, kept: int) -> None:
        """Say how many rows were left out, and why the first few."""
        if self.errors:
            reasons = "\n  ".join(str(error) for error in self.errors[:5])
            more = f"\n  and {len(self) - 5} more" if len(self) > 5 else ""
            logger.warning("skipped %d bad rows, kept %d:\n  %s%s", len(self), kept, reasons, more)


def accepted(rows: Iterable[Row | RowError], on_error: OnError, skipped: SkippedRows) -> Iterator[Row]:
    """The good rows; a bad one is raised (`"raise"`) or added to `skipped` (`"skip"`)."""
    for row in rows:
        if isinstance(row, Row):
            yield row
        elif on_error == "raise":
            raise row
        else:
            skipped.errors.append(row)


def in_waves(rows: Iterable[Row | RowError], size: int) -> Iterator[list[Row | RowError]]:
    """Rows, so many at a time; where reading ends in an error, those before it come first."""
    wave: list[Row | RowError] = []
    try:
        for row in rows:
            wave.append(row)
            if len(wave) == size:
                yield wave
                wave = []
    except UserError:
        if wave:
            yield wave
        raise
    if wave:
        yield wave


def text_cell(value: Any, name: str) -> str | None:
    """A cell that holds a text or a number, as text; None where it is empty (NaN too, as pandas writes it).

    Raises:
        UserError: it holds something else; says so by its `name`.
    """
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    text = value if isinstance(value, str) else number_text(value)
    if text is None:
        raise UserError(f"{name!r} must be a text, got {type(value).__name__}")
    return text


def first_text_cell(value: Any, name: str) -> str | None:
    """Likewise of a cell that may hold a list, of which the first that is not empty counts."""
    values = value if isinstance(value, list | tuple) else [value]
    return next((text for item in values if (text := text_cell(item, name)) is not None), None)


def mapping_cell(value: Any, name: str) -> Mapping[str, Any]:
    """A cell that holds named values; one without any where it is empty.

    Raises:
        UserError: it holds something else; says so by its `name`.
    """
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{name!r} must hold named values, got {type(value).__name__}")
    return value or {}


def extra_columns(value: Any) -> Mapping[str, Any]:
    """What `extra_info` adds to `Task.extra`; a value without names is called `extra_info`."""
    return value if isinstance(value, Mapping) else {} if value is None else {"extra_info": value}


def question_cell(cells: Mapping[str, Any], extra: Mapping[str, Any]) -> str | None:
    """The question that a row holds beside its prompt, in a column of its own or in `extra_info`; None without one."""
    found = (cells.get("question"), extra.get("question"))
    return next((question for question in found if isinstance(question, str) and question.strip()), None)
