"""Reads the parquet files of Search-R1's data preparation, such as `train.parquet` of nq_hotpotqa_train.

Columns: `reward_model` (`ground_truth` with the accepted answers as `target`) and `data_source` must be there, and the
question: as `question` where the file has that column, else at the end of `prompt`, behind the instructions. `id` and
`extra_info` may be missing. Which instructions a file holds does not matter: the protocol writes its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.parquet import read_cells, read_schema
from mmsearch_trl.data.rows import Row, RowError, extra_columns, gold_answers, mapping_cell, text_cell


_QUESTION_MARK = "Question: "
_COLUMNS = ("id", "question", "prompt", "reward_model", "data_source", "extra_info")
_ROWS_AT_A_TIME = 1024


def is_search_r1(schema: pa.Schema) -> bool:
    """Whether a parquet file is one of Search-R1's: no images, and gold answers as a `target`."""
    if "images" in schema.names or "reward_model" not in schema.names:
        return False
    truth = schema.field("reward_model").type
    if not pa.types.is_struct(truth) or truth.get_field_index("ground_truth") < 0:
        return False
    return pa.types.is_struct(truth.field("ground_truth").type)


def read_search_r1(path: Path) -> Iterator[Row | RowError]:
    """Yield every row of a file that `is_search_r1`, or the reason why it cannot be used, in order."""
    present = read_schema(path).names
    columns = [column for column in _COLUMNS if column in present]
    for number, cells in enumerate(read_cells(path, columns, rows_at_a_time=_ROWS_AT_A_TIME)):
        yield _row(cells, path, number)


def _row(cells: Mapping[str, Any], path: Path, number: int) -> Row | RowError:
    place = f"row {number} (counted from 0)"
    try:
        model = mapping_cell(cells["reward_model"], "reward_model")
        truth = mapping_cell(model.get("ground_truth"), "ground_truth")
        source = text_cell(cells.get("data_source"), "data_source") or path.stem
        return Row(
            place=place,
            id=f"{source}-{number if cells.get('id') is None else cells['id']}",
            question=_question(cells),
            images=(),
            answers=gold_answers(truth.get("target")),
            data_source=source,
            extra=extra_columns(cells.get("extra_info")),
        )
    except UserError as error:
        return RowError(path, place, str(error))


def _question(cells: Mapping[str, Any]) -> str:
    question = cells.get("question")
    if question is None and cells.get("prompt"):
        prompt = cells["prompt"]
        text = str(mapping_cell(prompt[0], "prompt").get("content")) if isinstance(prompt, list) else str(prompt)
        _instructions, mark, question = text.rpartition(_QUESTION_MARK)
        if not mark:
            raise UserError(f"`prompt` has no {_QUESTION_MARK!r} before its question, and there is no `question`")
    if not isinstance(question, str) or not question.strip():
        raise UserError("the question is empty (column `question`, or the end of `prompt`)")
    return question.strip()
