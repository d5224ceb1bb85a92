"""Rows of your own data and of published layouts (`data/columns.py`): a question, its images, its answers.

    {"question": "What is this tower called?", "image": "photos/tower.jpg", "answers": ["Eiffel Tower"]}

`image` is a path from the folder of the file, an address, a data URI, base64 or bytes, or a list of such; without it
the question is text only. A chat may stand for the question. `id`, `category`, `image_url` and `data_source` may be
given; every other column goes to the reward functions (`Task.extra`), unless it holds bytes. Other names of images
(`IMAGE_KEYS`) and of answers (`ANSWER_KEYS`, FlashRAG's `golden_answers` among them) are understood; a column that is
nearly one of these names is refused, as what it holds would be missing silently.
"""

from collections.abc import Collection, Mapping
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import check_spelling
from mmsearch_trl.core.tags import last_enclosed
from mmsearch_trl.data.answers import ANSWER_KEYS
from mmsearch_trl.data.columns import (
    ID_COLUMNS,
    LAYOUT_COLUMNS,
    SOURCE_COLUMNS,
    URL_COLUMNS,
    Columns,
    Layout,
    column,
    layout_of,
    listed,
)
from mmsearch_trl.data.image_cells import IMAGE_KEYS, image_source, row_images
from mmsearch_trl.data.messages import is_chat
from mmsearch_trl.data.questions import (
    asked,
    bare_question,
    last_reply,
    shown_images,
    with_reply,
    without_reply,
)
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import Row, extra_columns, first_text_cell, text_cell
from mmsearch_trl.data.sources import Source


_KNOWN = (
    *("question", "prompt", *ANSWER_KEYS, *IMAGE_KEYS, "id", "category", *URL_COLUMNS, *SOURCE_COLUMNS),
    *(name for name in LAYOUT_COLUMNS if name not in ("question", "prompt", "answer")),
)
_KEPT_FOR_REWARDS = ("data_id", "solution")
"""Known names which are other columns where no layout takes them."""
_NEEDED = ("messages", "prompt", "answer")
"""Of the columns that a recipe names, those without which a row is none."""
_OPTION_KEYS = ("options", "choices")


def read_plain(cells: Mapping[str, Any], source: Source, place: str, number: int, reading: Reading) -> Row:
    """
    Raises:
        UserError: the row cannot be used.
    """
    columns = reading.columns
    _check_spelling(cells.keys(), columns)
    _check_named({role: name for role, name in columns.named().items() if role in _NEEDED}, cells.keys())
    present = [name for name, value in cells.items() if value is not None]
    layout = layout_of(present) or Layout(())
    taken = {name.partition(".")[0] for name in (*columns.named().values(), *layout.known_by)}
    folder = reading.image_folder or source.folder
    extra_info = extra_columns(cells.get("extra_info")) if "reward_model" in layout.known_by else {}
    images = row_images(cells, folder, columns.images, ignored=taken)
    question, messages = None if columns.prompt else cells.get("question", extra_info.get("question")), ()
    if reading.rules is not None:
        cell = _conversation(cells, columns, layout, answered=reading.rules.answered)
        question, messages, images = reading.conversation(cell, images, folder)
    else:
        if question is None:
            prompt = _prompt(cells, columns.prompt or columns.messages, columns, layout)
            question = asked(prompt)
            images = images or tuple(image_source(block, folder) for block in shown_images(prompt))
        question = bare_question(question, len(images))
    given = _answers(cells, columns, layout)
    more = [gold for cell in given[1:] for gold in reading.scoring.texts(cell)]
    return Row(
        place=place,
        id=_first(cells, columns.id, ID_COLUMNS, "id") or f"{source.stem}-{number}",
        question=question,
        images=images,
        answers=reading.scoring.golds(given[0] if given else None, more, _options(cells, columns), question),
        data_source=_first(cells, columns.source, SOURCE_COLUMNS, "data_source") or source.stem,
        image_url=_first(cells, columns.image_url, URL_COLUMNS, "image_url"),
        category=_first(cells, columns.category, ("category",), "category"),
        extra=_others(cells, taken) | dict(extra_info),
        messages=messages,
    )


def check_plain(present: Collection[str], reading: Reading, *, spelling: bool) -> None:
    """
    Args:
        present: The columns of all rows.
        spelling: Also refuse a column that is nearly a known one, which `read_plain` does row by row.

    Raises:
        UserError: a column is missing that the recipe names, or that every row needs.
    """
    columns = reading.columns
    _check_named(columns.named(), present)
    if spelling:
        _check_spelling(present, columns)
    layout = layout_of(present) or Layout(())
    answers = (columns.answer,) if columns.answer else layout.answer
    needed = {
        "question": bool(columns.messages or columns.prompt or layout.known_by),
        "answers": not reading.scoring.needed
        or layout.messages not in (None, "prompt")
        or any(name.partition(".")[0] in present for name in answers),
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise UserError(
            f"nothing holds the {' and the '.join(missing)} of a row: its columns are {listed(present)}. A line looks "
            'like {"question": "...", "image": "photo.jpg", "answers": ["..."]}; `columns:` gives other names'
        )


def _check_named(named: Mapping[str, str], present: Collection[str]) -> None:
    for role, name in named.items():
        if name not in present and name.partition(".")[0] not in present:
            raise UserError(f"columns.{role} names {name!r}, and the columns there are {listed(present)}")


def _check_spelling(present: Collection[str], columns: Columns) -> None:
    named = columns.named().values()
    if mistyped := check_spelling([name for name in present if name not in named], _KNOWN):
        raise UserError(f"the key {mistyped}")


def _conversation(cells: Mapping[str, Any], columns: Columns, layout: Layout, *, answered: bool) -> Any:
    """The chat that the model is to go on with, or the text that is all of it; a chat is preferred to its question.

    Args:
        answered: The chat of a demonstration, which ends with what the assistant says.
    """
    named = columns.messages or columns.prompt
    if not named and layout.messages is None and is_chat(cells.get("prompt")):
        named = "prompt"
    cell = _prompt(cells, named, columns, layout)
    if answered:
        return cell if cells.get("completion") is None else with_reply(cell, cells["completion"])
    # What the assistant says at the end of a demonstration is the answer, and no part of the prompt.
    ends = not columns.answer and layout.messages is not None and not _in_columns(cells, layout)
    return without_reply(cell) if ends or layout.known_by == ("conversations",) else cell


def _prompt(cells: Mapping[str, Any], named: str | None, columns: Columns, layout: Layout) -> Any:
    """The chat or the text that holds the question."""
    name = named or layout.prompt or layout.messages
    value = None if name is None else column(cells, name)
    if value is None:
        raise UserError(f"the key {name or 'question'!r} is missing; keys present: {listed(cells.keys())}")
    # A text that begins as messages do and is cut off would be put to the model as it stands.
    begun = isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
    if begun and name in (layout.messages, columns.messages) and name != "prompt" and not is_chat(value):
        raise UserError(f"{name!r} begins as messages do, and is no list of them in JSON: {value!r:.80}")
    return value


def _answers(cells: Mapping[str, Any], columns: Columns, layout: Layout) -> list[Any]:
    """What the columns of answers hold, the ground truth first."""
    if columns.answer:
        given = column(cells, columns.answer)
        return [] if given in (None, "", []) else [given]
    given = _in_columns(cells, layout)
    if not given and layout.messages:
        given = [last_reply(column(cells, layout.messages))]
    if layout.tagged:
        given = [_untagged(value) for value in given]
    return given


def _in_columns(cells: Mapping[str, Any], layout: Layout) -> list[Any]:
    return [value for name in layout.answer if (value := column(cells, name)) not in (None, "", [])]


def _untagged(value: Any) -> Any:
    answer = last_enclosed(value, "answer") if isinstance(value, str) else None
    return value if answer is None else answer


def _first(cells: Mapping[str, Any], named: str | None, usual: tuple[str, ...], what: str) -> str | None:
    """The text of the first column that has one."""
    read = first_text_cell if usual == URL_COLUMNS else text_cell  # of a list of addresses, the first image's
    texts = (read(column(cells, name), what) for name in ((named,) if named else usual))
    return next((text for text in texts if text is not None), None)


def _options(cells: Mapping[str, Any], columns: Columns) -> Any:
    """What a question lets choose from: a list, or a key for each letter."""
    if columns.options:
        return column(cells, columns.options)
    found = next((cells[key] for key in _OPTION_KEYS if cells.get(key)), None)
    return found or ({key: cells[key] for key in "ABCDEFGHIJ" if key in cells} if {"A", "B"} <= cells.keys() else None)


def _others(cells: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """The columns that nobody here takes."""
    names = [name for name in cells if name not in taken and (name not in _KNOWN or name in _KEPT_FOR_REWARDS)]
    return {name: cells[name] for name in names if not _holds_bytes(cells[name])}


def _holds_bytes(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return isinstance(value, bytes) or any(map(_holds_bytes, parts))
