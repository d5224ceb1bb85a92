"""Demonstrations for supervised training: conversations in which the assistant searches and answers.

A line of a `.jsonl` file, images named by their path from the file's folder (here wrapped):

    {"question": "How tall is this tower?", "image": "tower.jpg", "turns": [
      {"assistant": "<reason>I do not know it.</reason><search><img></search>"},
      {"image_results": [{"title": "Eiffel Tower - Wikipedia", "image": "thumbnail.jpg", "url": "https://..."}]},
      {"assistant": "<reason>...</reason><text_search>height of the Eiffel Tower</text_search>"},
      {"text_results": [{"title": "Eiffel Tower", "text": "The tower is 330 metres tall ...", "url": "https://..."}]},
      {"assistant": "<reason>...</reason><answer>330 metres</answer>"}]}

The traces of a run are the other source (`demonstrations_from_traces.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import ImageHit, Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.image_cells import image_source, row_images
from mmsearch_trl.data.questions import bare_question
from mmsearch_trl.data.rows import text_cell
from mmsearch_trl.search.media.loading import load_image


_RESULTS = {"image_results": ActionKind.IMAGE_SEARCH, "text_results": ActionKind.TEXT_SEARCH}
_KEYS = {
    ActionKind.IMAGE_SEARCH: ({"title"}, {"title", "image", "url"}),
    ActionKind.TEXT_SEARCH: ({"title", "text"}, {"title", "text", "url"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One conversation with its images open.

    Attributes:
        texts: What the assistant says, turn by turn.
        observations: What followed each turn but the last; None where the user asked for the final answer.
        reply_tokens: Tokens of each reply in the run that the demonstration is a trace of; empty where there is none.
        cut: The last turn ended for want of tokens, so that its end is not learned.
    """

    task: Task
    texts: tuple[str, ...]
    observations: tuple[Observation | None, ...]
    reply_tokens: tuple[int, ...] = ()
    cut: bool = False


def read_conversation(line: Mapping[str, Any], folder: Path, name: str) -> Demonstration:
    """The demonstration of one line.

    Args:
        folder: Where paths of images start.
        name: The task's id, where the conversation has none.

    Raises:
        UserError: something is missing or of the wrong kind, or an image cannot be read.
    """
    texts: list[str] = []
    observations: list[Observation] = []
    turns = line.get("turns")
    if not isinstance(turns, list) or not turns:
        raise UserError(f"'turns' must be a list that is not empty, got {turns!r:.80}")
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or len(turn) != 1:
            raise UserError(f"turn {number} must be an object with one key, got {turn!r:.80}")
        ((key, value),) = turn.items()
        expected = _RESULTS if number % 2 else ("assistant",)
        if key not in expected:
            raise UserError(f"turn {number} must have the key {' or '.join(expected)}, got {key!r}")
        if key == "assistant":
            texts.append(_text(value, f"turn {number}"))
        else:
            observations.append(_observation(_RESULTS[key], value, folder, number))
    if len(turns) % 2 == 0:
        raise UserError("the last turn must be the assistant's")
    images = row_images(line, folder)
    task = Task(
        id=text_cell(line.get("id"), "id") or name,
        question=bare_question(line.get("question"), len(images)),
        images=tuple(map(load_image, images)),
        data_source="demonstration",
    )
    return Demonstration(task=task, texts=tuple(texts), observations=tuple(observations))


def _observation(tool: ActionKind, rows: Any, folder: Path, number: int) -> Observation:
    required, known = _KEYS[tool]
    if not isinstance(rows, list):
        raise UserError(f"turn {number} must hold a list of results, got {rows!r:.80}")
    hits = []
    for row in rows:
        if not isinstance(row, Mapping) or not required <= set(row) <= known:
            raise UserError(
                f"turn {number}: a result has the keys {', '.join(sorted(known))} "
                f"({', '.join(sorted(required))} must be there), got {row!r:.80}"
            )
        title, url = _text(row["title"], f"turn {number}: title"), text_cell(row.get("url"), "url")
        if tool == ActionKind.TEXT_SEARCH:
            hits.append(TextHit(title, _text(row["text"], f"turn {number}: text"), url=url))
        else:
            thumbnail = load_image(image_source(row["image"], folder)) if row.get("image") else None
            hits.append(ImageHit(title, url=url, thumbnail=thumbnail))
    return Observation(tool=tool, hits=tuple(hits))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} must be a text that is not empty, got {value!r:.80}")
    return value
