"""Reads the parquet files of Search-R1's data preparation, such as `train.parquet` of nq_hotpotqa_train.

Columns: `reward_model` (`ground_truth` with the accepted answers as `target`) and `data_source` must be there, and the
question: as `question` or `extra_info.question` where there is one, else at the end of the last message of `prompt` by
the user, behind the instructions. `id` and `extra_info` may be missing. Which instructions a file holds does not
matter: the protocol writes its own.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import check_spelling
from mmsearch_trl.data.answers import gold_answers
from mmsearch_trl.data.image_cells import seems_image
from mmsearch_trl.data.messages import ConversationRules, question_of, read_conversation
from mmsearch_trl.data.parquet import read_cells, read_schema
from mmsearch_trl.data.questions import asked, bare_question, messages_of, shown_images
from mmsearch_trl.data.rows import Row, RowError, extra_columns, mapping_cell, question_cell, text_cell


_QUESTION_MARK = re.compile(r"(?:^|\n[ \t]*|(?<=[.!?:>])[ \t]+)Question: ")
"""At the start, at that of a line, or behind a sentence; within one it is a word of the question."""
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


def read_search_r1(path: Path, rules: ConversationRules | None = None) -> Iterator[Row | RowError]:
    """Yield every row of a file that `is_search_r1`, or the reason why it cannot be used, in order.

    Args:
        rules: As for `read_jsonl`.

    Raises:
        UserError: a column seems to hold images, which these questions have not, or is nearly a known one.
    """
    present = read_schema(path).names
    for column in filter(seems_image, present):
        raise UserError(
            f"{path}: the column {column!r} seems to hold images, and would be lost: call it `images`, or leave it "
            "out of a file of questions without images"
        )
    if mistyped := check_spelling(present, _COLUMNS):
        raise UserError(f"{path}: the column {mistyped}")
    columns = [column for column in _COLUMNS if column in present]
    for number, cells in enumerate(read_cells(path, columns, rows_at_a_time=_ROWS_AT_A_TIME)):
        yield _row(cells, path, number, rules)


def _row(
    cells: Mapping[str, Any] | UserError, path: Path, number: int, rules: ConversationRules | None
) -> Row | RowError:
    place = f"row {number} (counted from 0)"
    try:
        if isinstance(cells, UserError):
            raise cells
        model = mapping_cell(cells["reward_model"], "reward_model")
        source = text_cell(cells.get("data_source"), "data_source") or path.stem
        extra = extra_columns(cells.get("extra_info"))
        question, messages = question_cell(cells, extra), ()
        if rules is not None:
            cell = cells.get("prompt")
            messages, _ = read_conversation(question if cell is None else cell, (), path.parent, rules)
            question = question_of(messages)
        else:
            question = bare_question(_asked(cells.get("prompt")) if question is None else question, 0).strip()
        return Row(
            place=place,
            id=f"{source}-{text_cell(cells.get('id'), 'id') or number}",
            question=question,
            images=(),
            messages=messages,
            answers=gold_answers(model.get("ground_truth"), model.get("candidate_answers")),
            data_source=source,
            extra=extra,
        )
    except UserError as error:
        return RowError(path, place, str(error))


def _asked(prompt: Any) -> str:
    """The question behind the instructions; all that the user says, where a system message holds them."""
    if shown_images(prompt):
        raise UserError("`prompt` holds an image, which would be lost: a file with images has a column `images`")
    text = asked(prompt)
    messages = messages_of(prompt)
    chat = not isinstance(messages, str) and any(message.get("role") == "system" for message in messages)
    # The instructions show what an answer looks like; whatever the question itself holds stands behind them.
    _instructions, tag, rest = text.rpartition("</answer>")
    marks = list(_QUESTION_MARK.finditer(rest))
    if chat and not tag:
        return rest[marks[0].end() :] if marks and marks[0].start() == 0 else rest
    if text.strip() and not marks:
        raise UserError("`prompt` has no 'Question: ' before its question, and there is no `question`")
    if len([mark for mark in marks if mark[0].startswith("\n")]) > 1:
        raise UserError("`prompt` has several lines that begin with 'Question: ': add a column `question`")
    return rest[marks[0].end() :] if marks else text
