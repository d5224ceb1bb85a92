"""A message of a conversation that a task begins with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args


Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        content: Texts, as they are written; None is the place of the next picture of the conversation.
    """

    role: Role
    content: tuple[str | None, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.content if part is not None)

    @property
    def pictures(self) -> int:
        """How many pictures it shows."""
        return self.content.count(None)


def shown(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as reward functions and tables see them: texts, with `<image>` where a picture stands."""
    return [
        {"role": message.role, "content": "".join("<image>" if part is None else part for part in message.content)}
        for message in messages
    ]
