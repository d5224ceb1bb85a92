"""What a recipe says to the model around a row's own words: a system message, and a text around the question.

A conversation that begins with a system message says all of it itself, and is left as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message


QUESTION = "{question}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """
    Attributes:
        template: Holds `QUESTION` once; all other braces are themselves.
    """

    system: str | None = None
    template: str | None = None

    @classmethod
    def load(cls, system_prompt: str | None, template: str | None) -> "Opening":
        """
        Args:
            system_prompt, template: A text, or the name of a `.txt` file.

        Raises:
            UserError: a file cannot be read, a text is empty, or the template has no place for the question.
        """
        system, template = _text(system_prompt, "system_prompt"), _text(template, "template")
        if template is not None and template.count(QUESTION) != 1:
            raise UserError(f"template must hold {QUESTION} once, and holds it {template.count(QUESTION)} times")
        return cls(system=system, template=template)

    def applied(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with what is said around it: the template around the last words of the user, behind the
        pictures that they begin with."""
        if messages[0].role == "system":
            return tuple(messages)
        opened = list(messages)
        if self.template is not None:
            last = max(number for number, message in enumerate(opened) if message.role == "user")
            opened[last] = Message("user", _framed(opened[last].content, *self.template.split(QUESTION)))
        return (*([Message("system", (self.system,))] if self.system is not None else ()), *opened)


AS_WRITTEN = Opening()
"""Nothing is said around a row's own words."""


def _text(given: str | None, key: str) -> str | None:
    if given is None:
        return None
    text = given
    if given.endswith(".txt"):
        try:
            with reading(given):
                text = Path(given).read_text(encoding="utf-8-sig").strip("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{key}: {given}: not UTF-8 text: {error}") from error
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    if not text.strip():
        raise UserError(f"{key} is empty{'' if text is given else f' ({given})'}: write a text, or leave it out")
    return text


def _framed(content: Sequence[str | None], before: str, after: str) -> tuple[str | None, ...]:
    first = next((number for number, part in enumerate(content) if part is not None), len(content))
    joined: list[str | None] = []
    for part in (*content[:first], before, *content[first:], after):
        if part is not None and joined and joined[-1] is not None:
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)
