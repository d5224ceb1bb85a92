"""Opens a corpus by what its first bytes say it is, whatever its name: parquet, or JSON lines, compressed or not."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.parquet

from mmsearch_trl.core.boundaries import reason
from mmsearch_trl.core.errors import UserError


_GZIP, _BZIP2, _XZ, _PARQUET = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"PAR1"
_ZSTD, _LZ4 = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
_REFUSED = {
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it",
    b"ARROW1": "an Arrow file: write it as parquet or as JSON lines",
    b"SQLite format 3": "an SQLite database: write its rows as JSON lines",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}
_ROWS_AT_ONCE = 1024
_CHUNK = 1 << 16


def is_parquet(path: Path) -> bool:
    """
    Raises:
        UserError: the file cannot be read, or is of a kind that is not.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error
    for magic, what in _REFUSED.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {what}")
    return start.startswith(_PARQUET)


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file, counted from 1.

    Raises:
        UserError: the file is damaged.
    """
    number = 0
    with _damage(path, lambda: number), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield number, values


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file that hold something, by their numbers from 1.

    Raises:
        UserError: the file cannot be read, or what compresses it is damaged.
    """
    number = 0
    with _damage(path, lambda: number), _opened(path) as file:
        for line in file:
            number += 1
            if line.strip():
                yield number, line


def _opened(path: Path) -> BinaryIO:
    file = path.open("rb")
    start = file.read(6)
    file.seek(0)
    if start.startswith(_GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if start.startswith(_BZIP2):
        return cast(BinaryIO, bz2.BZ2File(file))
    if start.startswith(_XZ):
        return cast(BinaryIO, lzma.LZMAFile(file))
    for magic, codec in ((_ZSTD, "zstd"), (_LZ4, "lz4")):
        if start.startswith(magic):
            return io.BufferedReader(pyarrow.CompressedInputStream(file, codec), _CHUNK)
    return file


@contextmanager
def _damage(path: Path, place: Callable[[], int]) -> Iterator[None]:
    """Says after which row a file cannot be read any further."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        raise UserError(f"{path}: cannot be read after line {place()}: {why}") from error
