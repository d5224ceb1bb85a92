"""Parquet files, a few rows at a time; a file that cannot be read is told by its name, whenever that is noticed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsearch_trl.core.errors import UserError


def read_schema(path: Path) -> pa.Schema:
    """The columns of a file and their types.

    Raises:
        UserError: it is no parquet file.
    """
    with _readable(path):
        return pq.read_schema(path)


def parquet_rows(path: Path) -> int:
    """How many rows a file says that it has.

    Raises:
        UserError: it is no parquet file.
    """
    with _readable(path):
        return pq.read_metadata(path).num_rows


def read_cells(
    path: Path, columns: list[str], *, rows_at_a_time: int, in_one_thread: bool = False
) -> Iterator[dict[str, Any] | UserError]:
    """The rows of a file in order, as the values of these columns; or why a row cannot be read.

    Args:
        in_one_thread: Do not read ahead: of images, a whole row group, hundreds of megabytes, would be held at once.

    Raises:
        UserError: the file, or a part of it, cannot be read.
    """
    with _readable(path):
        file = pq.ParquetFile(path, pre_buffer=not in_one_thread)
        batches = file.iter_batches(batch_size=rows_at_a_time, columns=columns, use_threads=not in_one_thread)
    while True:
        with _readable(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield from _values(batch)


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | UserError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # a writer that does not check its texts
        if batch.num_rows == 1:
            return [UserError(f"a text is not UTF-8: {error}")]
    return [values for number in range(batch.num_rows) for values in _values(batch.slice(number, 1))]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error
