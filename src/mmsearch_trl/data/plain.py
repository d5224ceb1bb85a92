"""Reads your own data: one JSON object a line, its images beside it.

    {"question": "What is this tower called?", "image": "photos/tower.jpg", "answers": ["Eiffel Tower"]}

`image` is a path from the folder of the file, a data URI or base64, or a list of such; without it the question is text
only. A chat under `prompt` may stand for the question. `id`, `category`, `image_url` and `data_source` may be given;
every other key goes to the reward functions (`Task.extra`). Other names of images (`IMAGE_KEYS`) and of answers
(`ANSWER_KEYS`, FlashRAG's `golden_answers` among them) are understood; a key that is nearly one of these names is
refused, as what it holds would be missing silently.
A folder stands for the one `.jsonl` file in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.json_lines import Line, read_lines
from mmsearch_trl.core.nearest import check_spelling
from mmsearch_trl.data.answers import ANSWER_KEYS, gold_answers
from mmsearch_trl.data.image_cells import IMAGE_KEYS, image_source, row_images
from mmsearch_trl.data.messages import ConversationRules, is_chat, question_of, read_conversation
from mmsearch_trl.data.questions import asked, bare_question, shown_images
from mmsearch_trl.data.rows import Row, RowError, first_text_cell, text_cell


CHAT_KEYS = ("messages", "message", "prompt")
"""Under the first of these that it has a row may hold a chat."""
_KNOWN_KEYS = (
    "question",
    *CHAT_KEYS,
    *ANSWER_KEYS,
    *IMAGE_KEYS,
    "id",
    "category",
    "image_url",
    "image_urls",
    "data_source",
)
_OPTION_KEYS = ("options", "choices")


def read_jsonl(path: Path, rules: ConversationRules | None = None) -> Iterator[Row | RowError]:
    """Yield every line of a `.jsonl` file, or the reason why it cannot be used, in order; blank lines are passed over.

    Args:
        rules: Read whole conversations; without them, the question is what the user said last.

    Raises:
        UserError: the file cannot be read, or a key that every row needs is in none of them, so that it is of another
            kind.
    """
    seen: dict[str, None] = {}
    for number, line in enumerate(read_lines(path)):
        yield _row(line, path, f"{path.stem}-{number}", seen, rules)
    needed = {"question": ("question", *CHAT_KEYS), "answers": ANSWER_KEYS}
    missing = [key for key, names in needed.items() if seen.keys().isdisjoint(names)]
    if missing and seen:  # lines that are no objects say so themselves
        raise UserError(
            f"{path}: no line has the key {', '.join(missing)}; keys present: {keys_of(sorted(seen))}. "
            'A line looks like {"question": "...", "image": "photo.jpg", "answers": ["..."]}.'
        )


def keys_of(keys: Iterable[str]) -> str:
    """Keys or columns, for a message."""
    return shortened(", ".join(keys), 300) or "none"


def jsonl_in_folder(folder: Path) -> Path:
    """The one `.jsonl` file of a folder.

    Raises:
        UserError: there is none, or there are several.
    """
    found = sorted(folder.glob("*.jsonl"))
    if len(found) != 1:
        names = keys_of(file.name for file in found)
        raise UserError(f"{folder}: a data folder holds exactly one .jsonl file, found {names}; name the file itself")
    return found[0]


def _row(
    line: Line, path: Path, default_id: str, seen: dict[str, None], rules: ConversationRules | None
) -> Row | RowError:
    place = f"line {line.number}"
    try:
        cells = line.object()
        seen.update(dict.fromkeys(cells))
        _check_keys(cells)
        images = row_images(cells, path.parent)
        question, messages = cells.get("question"), ()
        chat = next((cells[key] for key in CHAT_KEYS if cells.get(key) is not None), None)
        if rules is not None:
            cell = chat if question is None or is_chat(chat) else question
            messages, images = read_conversation(cell, images, path.parent, rules)
            question = question_of(messages)
        else:
            if question is None:
                question = asked(chat)
                images = images or tuple(image_source(block, path.parent) for block in shown_images(chat))
            question = bare_question(question, len(images))
        given = [cells[key] for key in ANSWER_KEYS if cells.get(key) not in (None, "", [])]
        return Row(
            place=place,
            id=text_cell(cells.get("id"), "id") or default_id,
            question=question,
            images=images,
            answers=gold_answers(given[0] if given else None, given[1:], _options(cells), question),
            data_source=text_cell(cells.get("data_source"), "data_source") or path.stem,
            image_url=first_text_cell(cells.get("image_url") or cells.get("image_urls"), "image_url"),
            category=text_cell(cells.get("category"), "category"),
            extra={key: value for key, value in cells.items() if key not in _KNOWN_KEYS},
            messages=messages,
        )
    except UserError as error:
        return RowError(path, place, str(error))


def _check_keys(cells: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: a row has no question, or holds something under what is nearly a known key.
    """
    if mistyped := check_spelling(cells.keys(), _KNOWN_KEYS):
        raise UserError(f"the key {mistyped}")
    if "question" not in cells and all(cells.get(key) is None for key in CHAT_KEYS):
        raise UserError(f"the key 'question' is missing; keys present: {keys_of(cells)}")


def _options(cells: Mapping[str, Any]) -> Any:
    """What a question lets choose from: a list, or a key for each letter."""
    named = next((cells[key] for key in _OPTION_KEYS if cells.get(key)), None)
    return named or ({key: cells[key] for key in "ABCDEFGHIJ" if key in cells} if {"A", "B"} <= cells.keys() else None)
