"""Conversations in the cells of data files: which messages, and which picture stands where.

A cell holds messages of `role` and `content`, as a list or as JSON. Content is a text, or a list of blocks:

    {"type": "text", "text": "What is the area?"}
    {"type": "image", "image": "figure.png", "min_pixels": 3136, "max_pixels": 401408}

A block of type `image` without a picture, and a mark such as `<image>` in a text, take the next of the pictures that
the row holds beside its messages; where neither is there, these pictures stand before what the user says last. A mark
that nothing stands for is refused: the model would read the word where a picture was meant.

Texts are kept as they are written, tags and line breaks included: a data set's own words are trusted.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import ROLES, Message, Role
from mmsearch_trl.data.image_cells import BoundedImage, ImageSource, image_source, unbounded
from mmsearch_trl.data.pixels import PixelLimits
from mmsearch_trl.data.questions import IMAGE_MARK, usual_message


_PICTURE_KEYS = ("image", "image_url", "url", "path", "bytes")
_BOUNDS = ("min_pixels", "max_pixels")
_IMAGE_TYPES = frozenset({"image", "image_url", "input_image"})
_TEXT_TYPES = frozenset({"text", "input_text"})
_KNOWN_KEYS = frozenset({"type", "text", "detail", *_PICTURE_KEYS, *_BOUNDS})


class Conversation(NamedTuple):
    """Messages, and the pictures that they show, in order."""

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRules:
    """That rows are read as whole conversations, and what a model can take of them.

    Attributes:
        check: Refuses messages that would not reach the model as they are written.
        fingerprint: Names `check` among those of other models.
        answered: What the assistant says stands at the end, as in a demonstration.
    """

    check: Callable[[Sequence[Message]], None]
    fingerprint: str
    answered: bool = False


def is_chat(value: Any) -> bool:
    """Whether a cell holds messages, and not a plain text: a list of objects, or one as JSON."""
    return _listed(value) is not None


def question_of(messages: Sequence[Message]) -> str:
    """What the user said last."""
    return next((message.text.strip() for message in reversed(messages) if message.role == "user"), "")


def read_conversation(
    cell: Any, images: Sequence[ImageSource], folder: Path, rules: ConversationRules
) -> Conversation:
    """The conversation that the assistant is to continue, or has; a plain text is what the user says.

    Args:
        images: What the row holds beside its messages.
        folder: Where paths of images start.

    Raises:
        UserError: see `read_chat`; or the last message is another's, or is empty.
    """
    conversation = read_chat(cell, images, folder, rules)
    last = conversation.messages[-1]
    if rules.answered and last.role != "assistant":
        raise UserError(
            f"the last message is the {last.role}'s, and a demonstration ends with what the assistant says"
        )
    if not rules.answered and last.role != "user":
        raise UserError(f"the last message is the {last.role}'s, and the model is to answer one of the user's")
    if rules.answered and (
        conversation.messages[0].role == "assistant" or any(map(_shows_as_assistant, conversation.messages))
    ):
        raise UserError("the assistant can neither begin a demonstration nor show a picture in it")
    if not last.text.strip() and not last.pictures:
        raise UserError("the last message is empty")
    return conversation


def read_chat(cell: Any, images: Sequence[ImageSource], folder: Path, rules: ConversationRules) -> Conversation:
    """The conversation of a cell, whoever speaks last.

    Raises:
        UserError: a message is of another kind or would not reach the model as it is written, a picture cannot be
            named, or pictures and their places do not match.
    """
    listed = _listed(cell)
    if listed is None:
        if not isinstance(cell, str) or not cell.strip():
            raise UserError(f"the conversation must be messages or a text that is not empty, got {cell!r:.80}")
        listed = [{"role": "user", "content": cell}]
    if not listed:
        raise UserError("the conversation has no message")
    reader = _Reader(list(images), folder)
    messages = [reader.message(number, value) for number, value in enumerate(listed)]
    if reader.beside and reader.taken == 0:
        if reader.shown:
            raise UserError("the row holds pictures twice: in its messages, and beside them")
        asked = max((n for n, message in enumerate(messages) if message.role == "user"), default=0)
        messages[asked] = Message(messages[asked].role, (*(None for _ in images), *messages[asked].content))
        reader.shown = list(images)
    elif reader.taken < len(images):
        raise UserError(f"the messages have places for {reader.taken} of the row's {len(images)} pictures")
    rules.check(messages)
    return Conversation(tuple(messages), tuple(reader.shown))


def _shows_as_assistant(message: Message) -> bool:
    return message.role == "assistant" and message.pictures > 0


def _listed(value: Any) -> list[Mapping[str, Any]] | None:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
        value = [value] if isinstance(value, Mapping) and "role" in value else value
    if isinstance(value, list | tuple) and all(isinstance(message, Mapping) for message in value):
        return [usual_message(message) for message in value]
    return None


@dataclass(slots=True)
class _Reader:
    """Takes messages in order, and finds the picture of each place.

    Attributes:
        beside: Pictures of the row that no message has taken.
        shown: Pictures of the messages so far.
        taken: How many of them were beside the messages.
    """

    beside: list[ImageSource]
    folder: Path
    shown: list[ImageSource] = field(default_factory=list)
    taken: int = 0

    def message(self, number: int, value: Mapping[str, Any]) -> Message:
        role, content = value.get("role"), value.get("content")
        if role not in ROLES:
            raise UserError(f"message {number} has the role {role!r:.40}; known are {', '.join(ROLES)}")
        blocks = content if isinstance(content, list | tuple) else [content]
        try:
            parts = [part for block in blocks for part in self._parts(block)]
        except UserError as error:
            raise UserError(f"message {number}: {error}") from error
        known: Role = role
        return Message(known, tuple(parts))

    def _parts(self, block: Any) -> Iterator[str | None]:
        if isinstance(block, str):
            yield from self._text(block)
            return
        if not isinstance(block, Mapping):
            raise UserError(f"`content` must be a text, or a list of blocks, got {block!r:.80}")
        kind = block.get("type") or ("text" if isinstance(block.get("text"), str) else "image")
        if kind in _TEXT_TYPES and isinstance(block.get("text"), str):
            yield from self._text(block["text"])
        elif kind in _IMAGE_TYPES:
            self.shown.append(self._picture(block))
            yield None
        else:
            raise UserError(f"a block is neither a text nor an image: {block!r:.80}")

    def _picture(self, block: Mapping[str, Any]) -> ImageSource:
        unknown = [key for key, value in block.items() if key not in _KNOWN_KEYS and value is not None]
        if unknown:
            raise UserError(f"the key {unknown[0]!r:.40} of an image means nothing here: take it out")
        given = any(block.get(key) for key in _PICTURE_KEYS)
        source = image_source(block, self.folder) if given else self._next("a block of type image")
        least, most = (_pixels(block.get(key), key) for key in _BOUNDS)
        if least is None and most is None:
            return source
        if least is not None and most is not None and least > most:
            raise UserError(f"min_pixels {least} is more than max_pixels {most}")
        return BoundedImage(unbounded(source), PixelLimits(least=least, most=most))

    def _text(self, text: str) -> Iterator[str | None]:
        end = 0
        for mark in IMAGE_MARK.finditer(text):
            if mark.start() > end:
                yield text[end : mark.start()]
            end = mark.end()
            self.shown.append(self._next(f"the mark {mark[0]}", mark[0]))
            yield None
        if end < len(text):
            yield text[end:]

    def _next(self, what: str, mark: str = "") -> ImageSource:
        """The next of the row's pictures."""
        if not self.beside:
            raise UserError(f"{what} has no picture: the row holds {self.taken or 'none'} beside its messages")
        digits = "".join(character for character in mark if character.isdigit())
        self.taken += 1
        if digits and int(digits) != self.taken:
            raise UserError(f"{what} stands where picture {self.taken} is next: write each mark once, in order")
        return self.beside.pop(0)


def _pixels(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise UserError(f"{name} must be a whole number of pixels, got {value!r:.40}")
    return int(value)
