"""What a turn of the model asks for."""

from dataclasses import dataclass
from enum import StrEnum


class ActionKind(StrEnum):
    """The values of the two searches are also the names of their tools."""

    ANSWER = "answer"
    IMAGE_SEARCH = "image_search"
    TEXT_SEARCH = "text_search"
    TOOL = "tool"
    """A call of another tool, named by `Action.tool`."""
    NONE = "none"
    """Neither an answer nor a call."""


SEARCHES: tuple[ActionKind, ...] = (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH)


@dataclass(frozen=True, slots=True)
class Action:
    """A parsed turn.

    Attributes:
        text: The query of a text search, the content of an answer, the arguments of another tool's call; else None.
        tool: Name of the tool that is called; empty where none is. Follows from `kind` for a search.
    """

    kind: ActionKind
    text: str | None = None
    tool: str = ""

    def __post_init__(self) -> None:
        if self.kind in SEARCHES:
            object.__setattr__(self, "tool", self.kind.value)

    @property
    def calls_tool(self) -> bool:
        return bool(self.tool)
