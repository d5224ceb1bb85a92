"""Tasks from data, one at a time: nothing but the row at hand is held in memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.columns import LAYOUTS_ALONE
from mmsearch_trl.data.fvqa import check_fvqa, is_fvqa, read_fvqa
from mmsearch_trl.data.images import resize_prompt_image
from mmsearch_trl.data.plain import check_plain, read_plain
from mmsearch_trl.data.reading import AS_IT_IS, Reading
from mmsearch_trl.data.rows import OnError, Row, RowError, SkippedRows, accepted
from mmsearch_trl.data.search_r1 import check_search_r1, is_search_r1, read_search_r1
from mmsearch_trl.data.sources import Source, find_source, read_cells
from mmsearch_trl.data.usable_answers import with_usable_answers
from mmsearch_trl.data.web_images import with_fetched_images


def read_rows(source: Source, reading: Reading = AS_IT_IS) -> Iterator[Row | RowError]:
    """Every row of a source, or the reason why it cannot be used, in order. Images are not opened.

    Raises:
        UserError: the source cannot be read, or lacks a column that every row needs.
    """
    seen: dict[str, Any] = {}
    for number, (place, cells) in enumerate(read_cells(source)):
        if not isinstance(cells, UserError):
            if not seen and not source.has_keys:
                _check_columns(source, cells, reading)
            seen.update(cells)
        try:
            if isinstance(cells, UserError):
                raise cells
            yield _row(cells, source, place, number, reading)
        except UserError as error:
            yield RowError(Path(source.text), place, str(error))
    if seen and source.has_keys:  # lines that are no objects say so themselves
        _check_columns(source, seen, reading)


def ready_rows(source: Source, reading: Reading) -> Iterator[Row | RowError]:
    """`read_rows` with answers that can be scored, and images that need not be fetched."""
    path = Path(source.text)
    return with_fetched_images(with_usable_answers(read_rows(source, reading), path, reading.scoring), path)


def _row(cells: Mapping[str, Any], source: Source, place: str, number: int, reading: Reading) -> Row:
    if reading.columns == LAYOUTS_ALONE:
        if is_search_r1(cells):
            return read_search_r1(cells, source, place, number, reading)
        if is_fvqa(cells):
            return read_fvqa(cells, source, place, number, reading)
    return read_plain(cells, source, place, number, reading)


def _check_columns(source: Source, cells: Mapping[str, Any], reading: Reading) -> None:
    """
    Args:
        cells: A row, where all have its columns; else what is a key of any.

    Raises:
        UserError: a column that every row needs is missing, or one is nearly a known one.
    """
    plain = reading.columns != LAYOUTS_ALONE or not (is_search_r1(cells) or is_fvqa(cells))
    try:
        if not plain and is_search_r1(cells):
            check_search_r1(cells.keys())
        elif not plain:
            check_fvqa(cells.keys())
        else:
            check_plain(cells.keys(), reading, spelling=not source.has_keys)
    except UserError as error:
        raise UserError(f"{source.text}: {error}") from error


def read_tasks(
    path: str | Path,
    *,
    reading: Reading = AS_IT_IS,
    on_error: OnError = "raise",
    resize: bool = False,
    skipped: SkippedRows | None = None,
) -> Iterator[Task]:
    """Tasks of one source in order, images decoded as they are reached.

    Args:
        path: As `find_source` takes it.
        on_error: `"raise"` stops at the first bad row; `"skip"` leaves bad rows out and logs their number at the end.
        resize: Bring images to the sizes of MMSearch-R1 (`resize_prompt_image`).
        skipped: Filled with the rows that were left out.

    Raises:
        UserError: the file cannot be used.
        RowError: a row cannot be used (`on_error="raise"`).
    """
    skipped = SkippedRows() if skipped is None else skipped
    source, kept = find_source(path, streaming=reading.streaming), 0
    rows = ready_rows(source, reading)
    for row in accepted(rows, on_error, skipped):
        try:
            images = tuple(map(reading.opened, row.images))
        except UserError as error:
            bad = RowError(Path(source.text), row.place, f"unreadable image: {error}")
            if on_error == "raise":
                raise bad from error
            skipped.errors.append(bad)
            continue
        kept += 1
        yield task_of(row, images, resize=resize)
        if kept == reading.most_rows:
            break
    skipped.log(kept)


def task_of(row: Row, images: tuple[Image.Image, ...], *, resize: bool) -> Task:
    """The task of a row whose images are decoded."""
    return Task(
        id=row.id,
        question=row.question,
        images=tuple(map(resize_prompt_image, images)) if resize else images,
        messages=row.messages,
        answers=row.answers,
        data_source=row.data_source,
        image_url=row.image_url,
        category=row.category,
        extra=row.extra,
    )
