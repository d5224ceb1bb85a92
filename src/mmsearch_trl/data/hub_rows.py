"""Rows of what the library `datasets` keeps: a data set on the Hub, a folder laid out like one, one saved to disk.

Cells come as they are stored, so that an image stays encoded. What the library does not let through (no network, no
such split, a damaged file) is said in one line that names the data set.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import datasets
import httpx
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetsError

from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.data.cells import Cells, row_place
from mmsearch_trl.data.parquet import values_of


ROWS_AT_A_TIME = 32


def saved_rows(folder: Path, split: str | None) -> datasets.Dataset:
    """What `save_to_disk` wrote.

    Raises:
        UserError: it is damaged, or the split is missing.
    """
    with _using(str(folder)):
        loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.Dataset):
        if split is not None:
            raise UserError(f"{folder} is one data set without splits: leave out `:{split}`")
        return loaded
    return loaded[_split(str(folder), split, list(map(str, loaded)))]


def hub_rows(
    name: str, data_dir: str | None, split: str | None, *, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """A split of a data set on the Hub, or in a folder laid out like one.

    Args:
        split: A name, or a part of one (`train[:100]`, unless it is streamed); None where there is only one.
        streaming: Read rows as they arrive, without a copy of the whole.

    Raises:
        UserError: it cannot be fetched or read, or the split is missing.
    """
    with _using(name):
        builder = _builder(name, data_dir)
        named = builder.config.data_files or builder.info.splits or {}
        split = _split(name, split, list(map(str, named)))
        if streaming:
            if "[" in split:
                raise UserError(f"{name}:{split}: no part of a split can be streamed: name max_samples_per_file")
            return cast("datasets.IterableDataset", builder.as_streaming_dataset(split))
        builder.download_and_prepare()
        return cast("datasets.Dataset", builder.as_dataset(split))


def hub_stamp(name: str, data_dir: str | None) -> str:
    """Changes with the files of a data set: their commit on the Hub, their times in a folder."""
    with _using(name):
        return _builder(name, data_dir).cache_dir


def _builder(name: str, data_dir: str | None) -> datasets.DatasetBuilder:
    """What knows how to read a data set. Cells of tables in CSV stay the texts that they are, as in a single file."""
    builder = datasets.load_dataset_builder(name, data_dir=data_dir)
    if builder.name != "csv":
        return builder
    splits = cast("Mapping[str, datasets.IterableDataset]", builder.as_streaming_dataset())
    names = next(iter(next(iter(splits.values()))), {})
    features = datasets.Features({column: datasets.Value("string") for column in names})
    return datasets.load_dataset_builder(name, data_dir=data_dir, features=features, keep_default_na=False)


def stored_cells(name: str, rows: "datasets.Dataset | datasets.IterableDataset") -> Iterator[Cells]:
    """
    Raises:
        UserError: a part of the data cannot be read.
    """
    number = 0
    with _using(name):
        batches = iter(rows.with_format("arrow").iter(ROWS_AT_A_TIME))
    while True:
        with _using(name):
            batch = cast("pa.Table | None", next(batches, None))
        if batch is None:
            return
        for values in values_of(batch):
            yield Cells(row_place(number), values)
            number += 1


def _split(name: str, split: str | None, known: list[str]) -> str:
    wanted = None if split is None else split.partition("[")[0]
    if wanted in known and split is not None:
        return split
    listed = ", ".join(known) or "none"
    if wanted is not None:
        raise UserError(f"{name} has no split {wanted!r}: it has {listed:.300}")
    if len(known) != 1:
        raise UserError(f"{name} has the splits {listed:.300}: name one, as {name}:{known[0] if known else 'train'}")
    return known[0]


@contextmanager
def _using(name: str) -> Iterator[None]:
    """What the library raises of a data set; its texts say what, and some of them in several lines."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, httpx.HTTPError, pa.ArrowException, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        said = shortened(" ".join(str(cause).split()), 300) or type(cause).__name__
        what = "" if Path(name).exists() else "is no file or folder here, and as a data set on the Hub it "
        raise UserError(f"{name} {what}cannot be used: {said}") from error
