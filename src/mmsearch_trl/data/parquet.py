"""Parquet and Arrow files, a few rows at a time.

A file that cannot be read is told by its name, whenever that is noticed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.cells import Cells, row_place


ARROW = ".arrow"
_ROWS_AT_A_TIME, _IMAGE_ROWS_AT_A_TIME = 1024, 32


def read_schema(path: Path) -> pa.Schema:
    """The columns of a file and their types.

    Raises:
        UserError: it is no parquet or Arrow file.
    """
    with _readable(path):
        if path.suffix != ARROW:
            return pq.read_schema(path)
        with _opened(path) as file:
            return file.schema


def count_stored(path: Path) -> int:
    """How many rows a file says that it has.

    Raises:
        UserError: it is no parquet or Arrow file.
    """
    with _readable(path):
        if path.suffix != ARROW:
            return pq.read_metadata(path).num_rows
        with _opened(path) as file:
            return sum(batch.num_rows for batch in _batches(file))


def read_stored(path: Path) -> Iterator[Cells]:
    """The rows of a parquet or Arrow file in order.

    Of images not more than a few are held at a time: a row group of them has hundreds of megabytes.

    Raises:
        UserError: the file, or a part of it, cannot be read.
    """
    number = 0
    with _readable(path):
        batches = _arrow_batches(path) if path.suffix == ARROW else _parquet_batches(path)
    while True:
        with _readable(path):
            batch = next(batches, None)
        if batch is None:
            return
        for values in values_of(batch):
            yield Cells(row_place(number), values)
            number += 1


def values_of(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any] | UserError]:
    """The values of rows by column; or why a row cannot be read."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # a writer that does not check its texts
        if batch.num_rows == 1:
            return [UserError(f"a text is not UTF-8: {error}")]
    return [values for number in range(batch.num_rows) for values in values_of(batch.slice(number, 1))]


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    large = "binary" in str(pq.read_schema(path))
    file = pq.ParquetFile(path, pre_buffer=not large)
    at_a_time = _IMAGE_ROWS_AT_A_TIME if large else _ROWS_AT_A_TIME
    return file.iter_batches(batch_size=at_a_time, use_threads=not large)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with _opened(path) as file:
        for batch in _batches(file):
            for start in range(0, batch.num_rows, _IMAGE_ROWS_AT_A_TIME):
                yield batch.slice(start, _IMAGE_ROWS_AT_A_TIME)


def _opened(path: Path) -> "pa.RecordBatchStreamReader | pa.RecordBatchFileReader":
    """A file as `datasets` writes it, a stream, or one that can be read in any order (Feather)."""
    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_file(mapped)


def _batches(file: "pa.RecordBatchStreamReader | pa.RecordBatchFileReader") -> Iterator[pa.RecordBatch]:
    if isinstance(file, pa.RecordBatchFileReader):
        return (file.get_batch(number) for number in range(file.num_record_batches))
    return iter(file)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        kind = "Arrow" if path.suffix == ARROW else "parquet"
        raise UserError(f"{path}: not a readable {kind} file: {error}") from error
