"""Which column of a row is what: by the recipe's `columns:`, else by one table of the layouts that people publish.

The table is looked up by the columns that are there and hold something, so that a file may mix layouts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from mmsearch_trl.core.errors import shortened
from mmsearch_trl.data.answers import ANSWER_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of columns, where they are not of a known layout; a dot leads into a column of named values."""

    messages: str | None = field(
        default=None, metadata={"help": "The conversation: messages with `role` and `content`, as a list or as JSON."}
    )
    prompt: str | None = field(default=None, metadata={"help": "The question, a text."})
    answer: str | None = field(default=None, metadata={"help": "The gold answer, or several."})
    images: str | None = field(default=None, metadata={"help": "The image, or a list of images."})
    source: str | None = field(default=None, metadata={"help": "The name by which results are grouped."})
    id: str | None = field(default=None, metadata={"help": "A name of the row."})
    category: str | None = field(default=None, metadata={"help": "A second name by which results are grouped."})
    image_url: str | None = field(default=None, metadata={"help": "The public address of the first image."})
    options: str | None = field(default=None, metadata={"help": "What the question lets choose from."})

    def named(self) -> dict[str, str]:
        """The columns that are named, by what they are."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {role: name for role, name in given.items() if name is not None}


LAYOUTS_ALONE = Columns()
"""No column is named."""


class Layout(NamedTuple):
    """
    Attributes:
        known_by: The columns by which it is known.
        tagged: The answer stands between `<answer>` tags.
    """

    known_by: tuple[str, ...]
    messages: str | None = None
    prompt: str | None = None
    answer: tuple[str, ...] = ANSWER_KEYS
    tagged: bool = False


LAYOUTS = (
    # LMM-R1 (a text of JSON), and chats with a gold answer.
    Layout(("message",), messages="message"),
    Layout(("messages",), messages="messages"),
    # verl, and what is prepared for it.
    Layout(("prompt", "reward_model"), messages="prompt", answer=("reward_model.ground_truth",)),
    # VLM-R1, LLaVA: the last turn of the assistant is the answer where no column holds it.
    Layout(("conversations",), messages="conversations", tagged=True),
    # EasyR1, geometry3k, DeepScaleR (whose `solution` is a way to the answer).
    Layout(("problem", "answer"), prompt="problem", answer=("answer",)),
    # R1-V.
    Layout(("problem", "solution"), prompt="problem", answer=("solution",), tagged=True),
    Layout(("problem",), prompt="problem"),
    # A data set of one's own, FlashRAG.
    Layout(("question",), prompt="question"),
    Layout(("prompt",), messages="prompt"),
)

SOURCE_COLUMNS = ("data_source", "datasource")
ID_COLUMNS = ("id", "data_id")
URL_COLUMNS = ("image_url", "image_urls")
LAYOUT_COLUMNS = tuple(dict.fromkeys(name for layout in LAYOUTS for name in layout.known_by))


def layout_of(present: Collection[str]) -> Layout | None:
    """The first layout whose columns are all there."""
    return next((layout for layout in LAYOUTS if all(name in present for name in layout.known_by)), None)


def column(cells: Mapping[str, Any], name: str) -> Any:
    """What a column holds; a dot leads into named values. None where it is not there."""
    if name in cells:
        return cells[name]
    value: Any = cells
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def listed(names: Collection[str]) -> str:
    """Keys or columns, for a message."""
    return shortened(", ".join(names), 300) or "none"
