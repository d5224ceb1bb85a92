"""Reads your own data: one JSON object a line, its images beside it.

    {"question": "What is this tower called?", "image": "photos/tower.jpg", "answers": ["Eiffel Tower"]}

`image` is a path from the folder of the file, or a list of such paths; without it the question is text only. `id`,
`category`, `image_url` and `data_source` may be given; every other key goes to the reward functions (`Task.extra`).
FlashRAG's `golden_answers` are taken for `answers`.
A folder stands for the one `.jsonl` file in it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.rows import Row, RowError, gold_answers, image_source, text_cell


_KNOWN_KEYS = frozenset(
    {"id", "question", "image", "answers", "category", "image_url", "data_source", "golden_answers"}
)


def read_jsonl(path: Path) -> Iterator[Row | RowError]:
    """Yield every line of a `.jsonl` file, or the reason why it cannot be used, in order; blank lines are passed over.

    Raises:
        UserError: a key that every row needs is in none of the rows, so that the file is of another kind.
    """
    number = 0
    seen: set[str] = set()
    with reading(path), path.open("rb") as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _row(line, path, f"line {line_number}", f"{path.stem}-{number}", seen)
            number += 1
            yield row
    seen |= {"answers"} if "golden_answers" in seen else set()
    missing = [key for key in ("question", "answers") if key not in seen]
    if missing and seen:  # lines that are no objects say so themselves
        raise UserError(
            f"{path}: no line has the key {', '.join(missing)}; keys present: {', '.join(sorted(seen)) or 'none'}. "
            'A line looks like {"question": "...", "image": "photo.jpg", "answers": ["..."]}.'
        )


def jsonl_in_folder(folder: Path) -> Path:
    """The one `.jsonl` file of a folder.

    Raises:
        UserError: there is none, or there are several.
    """
    found = sorted(folder.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: a data folder holds exactly one .jsonl file, found {names}; name the file itself")
    return found[0]


def _row(line: bytes, path: Path, place: str, default_id: str, seen: set[str]) -> Row | RowError:
    try:
        cells = json_object(line)
        seen.update(cells)
        return Row(
            place=place,
            id=str(cells.get("id", default_id)),
            question=_text(cells, "question"),
            images=tuple(image_source(image, path.parent) for image in _images(cells.get("image"))),
            answers=gold_answers(cells.get("answers") or cells.get("golden_answers")),
            data_source=text_cell(cells.get("data_source"), "data_source") or path.stem,
            image_url=text_cell(cells.get("image_url"), "image_url"),
            category=text_cell(cells.get("category"), "category"),
            extra={key: value for key, value in cells.items() if key not in _KNOWN_KEYS},
        )
    except UserError as error:
        return RowError(path, place, str(error))


def json_object(line: bytes) -> dict[str, Any]:
    """The object of a line of JSON.

    Raises:
        UserError: it is not UTF-8, no JSON, or no object.
    """
    try:
        cells = json.loads(line.decode("utf-8"))
        if b"\\u" in line:  # half of a surrogate pair is JSON, and no text
            json.dumps(cells, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from error
    if not isinstance(cells, dict):
        raise UserError(f"expected a JSON object, got a {type(cells).__name__}")
    return cells


def _text(cells: dict[str, Any], key: str) -> str:
    if key not in cells:
        raise UserError(f"the key {key!r} is missing; keys present: {', '.join(cells) or 'none'}")
    if not isinstance(cells[key], str) or not cells[key].strip():
        raise UserError(f"{key!r} must be a text that is not empty")
    return cells[key]


def _images(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
