"""Rows of Search-R1's data preparation, such as `train.parquet` of nq_hotpotqa_train.

Columns: `reward_model` (`ground_truth` with the accepted answers as `target`) and `data_source` must be there, and the
question: as `question` or `extra_info.question` where there is one, else at the end of the last message of `prompt` by
the user, behind the instructions. `id` and `extra_info` may be missing. Which instructions a file holds does not
matter: the protocol writes its own.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import check_spelling
from mmsearch_trl.data.image_cells import seems_image
from mmsearch_trl.data.questions import asked, bare_question, messages_of, shown_images
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import Row, extra_columns, mapping_cell, question_cell, text_cell
from mmsearch_trl.data.sources import Source


_QUESTION_MARK = re.compile(r"(?:^|\n[ \t]*|(?<=[.!?:>])[ \t]+)Question: ")
"""At the start, at that of a line, or behind a sentence; within one it is a word of the question."""
_COLUMNS = ("id", "question", "prompt", "reward_model", "data_source", "extra_info")


def is_search_r1(cells: Mapping[str, Any]) -> bool:
    """Whether a row is one of Search-R1's: no images, and gold answers as a `target`."""
    model = cells.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    return "images" not in cells and isinstance(truth, Mapping)


def check_search_r1(present: Collection[str]) -> None:
    """
    Raises:
        UserError: a column seems to hold images, which these questions have not, or is nearly a known one.
    """
    for column in filter(seems_image, present):
        raise UserError(
            f"the column {column!r} seems to hold images, and would be lost: call it `images`, or leave it out of a "
            "file of questions without images"
        )
    if mistyped := check_spelling(present, _COLUMNS):
        raise UserError(f"the column {mistyped}")


def read_search_r1(cells: Mapping[str, Any], source: Source, place: str, number: int, reading: Reading) -> Row:
    """
    Raises:
        UserError: the row cannot be used.
    """
    model = mapping_cell(cells["reward_model"], "reward_model")
    name = text_cell(cells.get("data_source"), "data_source") or source.stem
    extra = extra_columns(cells.get("extra_info"))
    question, messages = question_cell(cells, extra), ()
    if reading.rules is not None:
        cell = cells.get("prompt")
        question, messages, _ = reading.conversation(question if cell is None else cell, (), source.folder)
    else:
        question = bare_question(_asked(cells.get("prompt")) if question is None else question, 0).strip()
    return Row(
        place=place,
        id=f"{name}-{text_cell(cells.get('id'), 'id') or number}",
        question=question,
        images=(),
        messages=messages,
        answers=reading.scoring.golds(model.get("ground_truth"), model.get("candidate_answers")),
        data_source=name,
        extra=extra,
    )


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
