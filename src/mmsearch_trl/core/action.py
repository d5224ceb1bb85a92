"""What a turn of the model asks for."""

from dataclasses import dataclass
from enum import StrEnum


class ActionKind(StrEnum):
    ANSWER = "answer"
    IMAGE_SEARCH = "image_search"
    TEXT_SEARCH = "text_search"
    NONE = "none"
    """Neither an answer nor a search: the trajectory ends."""


@dataclass(frozen=True, slots=True)
class Action:
    """A parsed turn. `text` is the query of a text search or the content of an answer, else None."""

    kind: ActionKind
    text: str | None = None

    @property
    def is_search(self) -> bool:
        return self.kind in (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH)


class Tool(StrEnum):
    IMAGE_SEARCH = "image_search"
    TEXT_SEARCH = "text_search"
