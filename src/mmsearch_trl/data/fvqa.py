"""Reads the parquet files of MMSearch-R1 and of the FVQA release, a few rows at a time.

Columns: `prompt` (a list of messages; the question is the last one of the user's, `data/questions.py`), `images` (a
list of encoded images), `reward_model` (`ground_truth` and `candidate_answers`, `data/answers.py`) and `data_source`
must be there; `data_id`, `category` and `extra_info` may be missing, and so may `image_urls`, which is null in every
released row. A column `question`, or `extra_info.question`, is preferred to the prompt.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import check_spelling
from mmsearch_trl.data.answers import gold_answers
from mmsearch_trl.data.image_cells import image_source
from mmsearch_trl.data.messages import ConversationRules, question_of, read_conversation
from mmsearch_trl.data.parquet import read_cells, read_schema
from mmsearch_trl.data.plain import keys_of
from mmsearch_trl.data.questions import asked, bare_question
from mmsearch_trl.data.rows import (
    Row,
    RowError,
    extra_columns,
    first_text_cell,
    mapping_cell,
    question_cell,
    text_cell,
)


REQUIRED_COLUMNS = ("prompt", "images", "reward_model", "data_source")
OPTIONAL_COLUMNS = ("data_id", "question", "category", "image_urls", "extra_info")
_OTHER_NAMES = ("id", "image_url")
"""Of `data_id` and `image_urls`."""

_ROWS_AT_A_TIME = 32


def read_parquet(path: Path, rules: ConversationRules | None = None) -> Iterator[Row | RowError]:
    """Yield every row of a parquet file, or the reason why it cannot be used, in order.

    Args:
        rules: As for `read_jsonl`.

    Raises:
        UserError: the file is no parquet file, lacks a column, or has one that is nearly a known one.
    """
    present = read_schema(path).names
    missing = [column for column in REQUIRED_COLUMNS if column not in present]
    if missing:
        raise UserError(
            f"{path}: column {', '.join(missing)} is missing; columns present: {keys_of(present)}. "
            f"An MMSearch-R1 file has {', '.join(REQUIRED_COLUMNS)} (and perhaps {', '.join(OPTIONAL_COLUMNS)})."
        )
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *_OTHER_NAMES)
    if mistyped := check_spelling(present, known):
        raise UserError(f"{path}: the column {mistyped}")
    columns = [column for column in known if column in present]
    rows = read_cells(path, columns, rows_at_a_time=_ROWS_AT_A_TIME, in_one_thread=True)
    for number, cells in enumerate(rows):
        yield _row(cells, path, number, rules)


def _row(
    cells: Mapping[str, Any] | UserError, path: Path, number: int, rules: ConversationRules | None
) -> Row | RowError:
    place = f"row {number} (counted from 0)"
    try:
        if isinstance(cells, UserError):
            raise cells
        truth = mapping_cell(cells["reward_model"], "reward_model")
        extra = extra_columns(cells.get("extra_info"))
        question, messages = question_cell(cells, extra), ()
        images = _listed(cells["images"])
        images = tuple(image_source(image, path.parent) for image in images or ([None] if rules is None else ()))
        if rules is not None:
            messages, images = read_conversation(cells["prompt"], images, path.parent, rules)
            question = question_of(messages)
        else:
            question = bare_question(asked(cells["prompt"]) if question is None else question, len(images))
        return Row(
            place=place,
            id=text_cell(cells.get("data_id", cells.get("id")), "data_id") or f"{path.stem}-{number}",
            question=question,
            images=images,
            answers=gold_answers(
                truth.get("ground_truth"),
                truth.get("candidate_answers"),
                extra.get("options") or extra.get("choices"),
                question,
            ),
            data_source=text_cell(cells["data_source"], "data_source") or path.stem,
            image_url=first_text_cell(cells.get("image_urls", cells.get("image_url")), "image_urls"),
            category=text_cell(cells.get("category"), "category"),
            extra=extra,
            messages=messages,
        )
    except UserError as error:
        return RowError(path, place, str(error))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
