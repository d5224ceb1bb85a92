"""Reads the parquet files of MMSearch-R1 and of the FVQA release, a few rows at a time.

Columns: `prompt` (a list of messages, the question alone in the first), `images` (a list of encoded images),
`reward_model` (`ground_truth` and `candidate_answers`, a JSON-encoded list) and `data_source` must be there;
`data_id`, `category` and `extra_info` may be missing, and so may `image_urls`, which is null in every released row.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.rows import DataError, Row, RowError, gold_answers, image_source


REQUIRED_COLUMNS = ("prompt", "images", "reward_model", "data_source")
OPTIONAL_COLUMNS = ("data_id", "category", "image_urls", "extra_info")

_ROWS_AT_A_TIME = 32


def read_parquet(path: Path) -> Iterator[Row | RowError]:
    """Yield every row of a parquet file, or the reason why it cannot be used, in order.

    Raises:
        DataError: the file is no parquet file, or lacks a column.
    """
    try:
        # Without read-ahead: the images of a whole row group, hundreds of megabytes, would be held at once.
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    present = file.schema_arrow.names
    missing = [column for column in REQUIRED_COLUMNS if column not in present]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; columns present: {', '.join(present)}. "
            f"An MMSearch-R1 file has {', '.join(REQUIRED_COLUMNS)} (and perhaps {', '.join(OPTIONAL_COLUMNS)})."
        )
    columns = [column for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if column in present]
    number = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns, use_threads=False):
        for cells in batch.to_pylist():
            yield _row(cells, path, number)
            number += 1


def _row(cells: Mapping[str, Any], path: Path, number: int) -> Row | RowError:
    place = f"row {number} (counted from 0)"
    try:
        truth = cells["reward_model"] or {}
        return Row(
            place=place,
            id=cells.get("data_id") or f"{path.stem}-{number}",
            question=_question(cells["prompt"]),
            images=tuple(image_source(image, path.parent) for image in _listed(cells["images"]) or [None]),
            answers=gold_answers(truth.get("ground_truth"), truth.get("candidate_answers")),
            data_source=cells["data_source"] or path.stem,
            image_url=next((url for url in _listed(cells.get("image_urls")) if url), None),
            category=cells.get("category"),
            extra=_extra(cells.get("extra_info")),
        )
    except (ValueError, TypeError, AttributeError) as error:
        return RowError(path, place, str(error))


def _question(prompt: Any) -> str:
    question = prompt[0].get("content") if prompt and not isinstance(prompt, str) else prompt
    if not isinstance(question, str) or not question.strip():
        raise UserError("the question (`content` of the first message of `prompt`) is empty")
    return question


def _extra(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {} if value is None else {"extra_info": value}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
