"""Rows of MMSearch-R1 and of the FVQA release.

Columns: `prompt` (a list of messages; the question is the last one of the user's, `data/questions.py`), `images` (a
list of encoded images), `reward_model` (`ground_truth` and `candidate_answers`, `data/answers.py`) and `data_source`
must be there; `data_id`, `category` and `extra_info` may be missing, and so may `image_urls`, which is null in every
released row. A column `question`, or `extra_info.question`, is preferred to the prompt.
"""

from collections.abc import Collection, Mapping
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import check_spelling
from mmsearch_trl.data.image_cells import image_source
from mmsearch_trl.data.questions import asked, bare_question
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import (
    Row,
    extra_columns,
    first_text_cell,
    mapping_cell,
    question_cell,
    text_cell,
)
from mmsearch_trl.data.sources import Source


REQUIRED_COLUMNS = ("prompt", "images", "reward_model", "data_source")
OPTIONAL_COLUMNS = ("data_id", "question", "category", "image_urls", "extra_info")
_OTHER_NAMES = ("id", "image_url")
"""Of `data_id` and `image_urls`."""
FVQA_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *_OTHER_NAMES)


def is_fvqa(columns: Collection[str]) -> bool:
    """Whether rows are those of MMSearch-R1."""
    return all(column in columns for column in REQUIRED_COLUMNS)


def check_fvqa(present: Collection[str]) -> None:
    """
    Raises:
        UserError: a column is nearly a known one.
    """
    if mistyped := check_spelling(present, FVQA_COLUMNS):
        raise UserError(f"the column {mistyped}")


def read_fvqa(cells: Mapping[str, Any], source: Source, place: str, number: int, reading: Reading) -> Row:
    """
    Raises:
        UserError: the row cannot be used.
    """
    truth = mapping_cell(cells["reward_model"], "reward_model")
    extra = extra_columns(cells.get("extra_info"))
    folder = reading.image_folder or source.folder
    question, messages = question_cell(cells, extra), ()
    images = _listed(cells["images"]) or ([None] if reading.rules is None else [])
    images = tuple(image_source(image, folder) for image in images)
    if reading.rules is not None:
        question, messages, images = reading.conversation(cells["prompt"], images, folder)
    else:
        question = bare_question(asked(cells["prompt"]) if question is None else question, len(images))
    return Row(
        place=place,
        id=text_cell(cells.get("data_id", cells.get("id")), "data_id") or f"{source.stem}-{number}",
        question=question,
        images=images,
        answers=reading.scoring.golds(
            truth.get("ground_truth"),
            truth.get("candidate_answers"),
            extra.get("options") or extra.get("choices"),
            question,
        ),
        data_source=text_cell(cells["data_source"], "data_source") or source.stem,
        image_url=first_text_cell(cells.get("image_urls", cells.get("image_url")), "image_urls"),
        category=text_cell(cells.get("category"), "category"),
        extra=extra,
        messages=messages,
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
