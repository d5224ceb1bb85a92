"""A row as a file holds it: checked, with its images still encoded; and what happens to a row that is no good.

A reader yields, for every row of a file, either a `Row` or a `RowError`. It never raises for one bad row, so that the
caller decides: `accepted` raises the error, or counts it in a `SkippedRows` and goes on.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mmsearch_trl.core.errors import UserError


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
ImageSource = bytes | Path | Image.Image


class RowError(UserError):
    """One row cannot be used. `place` is the row as a reader finds it: "row 3 (from 0)" or "line 4"."""

    def __init__(self, path: Path, place: str, reason: str) -> None:
        super().__init__(f"{path}, {place}: {reason}")
        self.path = path
        self.place = place
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question before its images are decoded; the other fields are those of `Task`.

    Attributes:
        place: Where the row stands in its file, for messages.
        images: Encoded bytes, paths of files, or images, in the order in which the model sees them.
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


def gold_answers(truth: Any, candidates: Any = None) -> tuple[str, ...]:
    """Gold answers, the ground truth first.

    Args:
        truth: A string or a list of strings.
        candidates: None, a list, or a JSON-encoded list; what is not a string in it is dropped.

    Raises:
        UserError: the ground truth is of another kind or no answer is left of it, or the candidates are no list.
    """
    if truth and not isinstance(truth, str | list | tuple):
        raise UserError(f"the ground truth must be a text or a list of texts, got {type(truth).__name__}")
    golds = [truth] if isinstance(truth, str) else list(truth or ())
    golds = [gold for gold in golds if isinstance(gold, str) and gold.strip()]
    if not golds:
        raise UserError("the ground truth is empty: a row without a right answer can be neither trained nor scored")
    if isinstance(candidates, str):
        try:
            candidates = json.loads(candidates)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"candidate_answers is a string but not a JSON list: {candidates!r:.80}") from error
    if candidates is not None and not isinstance(candidates, list | tuple):
        raise UserError(f"candidate_answers must be a list or a JSON list, got {type(candidates).__name__}")
    return tuple(golds) + tuple(answer for answer in candidates or () if isinstance(answer, str) and answer.strip())


def image_source(value: Any, folder: Path) -> ImageSource:
    """An image cell as something that can be opened: bytes, `{"bytes", "path"}`, a path (from `folder`), or an image.

    Raises:
        UserError: it is none of these, or holds nothing.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        return folder / value
    if isinstance(value, Image.Image):
        return value
    raise UserError(f"no image: expected encoded bytes, a path or an image, got {_described(value)}")


def text_cell(value: Any, name: str) -> str | None:
    """A cell that holds a text or a number, as text; None where it is empty.

    Raises:
        UserError: it holds something else; says so by its `name`.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{name!r} must be a text, got {type(value).__name__}")
    return str(value)


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


def _described(value: Any) -> str:
    return "nothing" if value is None or value in ("", b"") else type(value).__name__
