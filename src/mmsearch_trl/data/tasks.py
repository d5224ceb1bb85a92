"""Tasks from data files, one at a time: nothing but the row at hand is held in memory."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.fvqa import read_parquet
from mmsearch_trl.data.images import load_prompt_image, resize_prompt_image
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.parquet import parquet_rows, read_schema
from mmsearch_trl.data.plain import jsonl_in_folder, read_jsonl
from mmsearch_trl.data.rows import OnError, Row, RowError, SkippedRows, accepted
from mmsearch_trl.data.search_r1 import is_search_r1, read_search_r1


_PARQUET = (".parquet", ".pq")


def data_file(path: str | Path) -> Path:
    """The file that `path` stands for: itself, or the one `.jsonl` file in it.

    Raises:
        UserError: it is missing or of a kind that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return jsonl_in_folder(path)
    if not path.is_file():
        raise UserError(f"data file not found: {path}")
    if path.suffix not in (*_PARQUET, ".jsonl"):
        raise UserError(f"{path}: expected a .parquet or .pq file, a .jsonl file, or a folder with one .jsonl file")
    return path


def count_rows(path: str | Path) -> int:
    """Rows of a data file, bad ones included, without reading what they hold.

    Raises:
        UserError: it is missing, or of a kind that cannot be read.
    """
    file = data_file(path)
    if file.suffix in _PARQUET:
        return parquet_rows(file)
    with reading(file), file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def read_rows(file: Path, rules: ConversationRules | None = None) -> Iterator[Row | RowError]:
    """Rows of a parquet file (`data/fvqa.py`, `data/search_r1.py`) or a `.jsonl` file (`data/plain.py`).

    Images are not opened.

    Args:
        rules: Read whole conversations; without them, the question is what the user said last.

    Raises:
        UserError: a parquet file cannot be read.
    """
    if file.suffix not in _PARQUET:
        return read_jsonl(file, rules)
    return read_search_r1(file, rules) if is_search_r1(read_schema(file)) else read_parquet(file, rules)


def read_tasks(
    path: str | Path,
    *,
    on_error: OnError = "raise",
    resize: bool = False,
    skipped: SkippedRows | None = None,
    rules: ConversationRules | None = None,
) -> Iterator[Task]:
    """Tasks of one file in order, images decoded as they are reached.

    Args:
        on_error: `"raise"` stops at the first bad row; `"skip"` leaves bad rows out and logs their number at the end.
        resize: Bring images to the sizes of MMSearch-R1 (`resize_prompt_image`).
        skipped: Filled with the rows that were left out.
        rules: As for `read_rows`.

    Raises:
        UserError: the file cannot be used.
        RowError: a row cannot be used (`on_error="raise"`).
    """
    skipped = SkippedRows() if skipped is None else skipped
    file, kept = data_file(path), 0
    for row in accepted(read_rows(file, rules), on_error, skipped):
        try:
            images = tuple(load_prompt_image(image) for image in row.images)
        except UserError as error:
            bad = RowError(file, row.place, f"unreadable image: {error}")
            if on_error == "raise":
                raise bad from error
            skipped.errors.append(bad)
            continue
        kept += 1
        yield task_of(row, images, resize=resize)
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
