"""The bare question of a row, out of what data sets wrap it in: chats, blocks of content, marks where images stand."""

import json
import re
from collections.abc import Mapping
from typing import Any

from mmsearch_trl.core.errors import UserError


IMAGE_MARK = re.compile(
    r"<image(?:[ _-]?\d{1,3})?>|<\|image(?:_\d{1,3})?\|>|<start_of_image>|<ImageHere>"
    r"|(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?",
    re.IGNORECASE,
)
"""What data sets and models write where an image stands: LLaVA, MMMU, Phi, Llama, Gemma, InternLM, Qwen."""
_NUMBER = re.compile(r"\d+")
_SPEAKERS = {"human": "user", "gpt": "assistant"}
"""LLaVA's names of roles."""
_IMAGE_BLOCKS = frozenset({"image", "image_url", "input_image"})


def bare_question(text: Any, images: int) -> str:
    """A question without the marks of images: the protocol says where they stand.

    A mark that stands at either end or on a line of its own is left out; one within a sentence is a word of it and
    becomes `the image`, or `image 2` where there are several.

    Raises:
        UserError: it is no text or empty, or begins or ends with a mark and the row has no image.
    """
    if not isinstance(text, str):
        raise UserError(f"'question' must be a text that is not empty, got {type(text).__name__}")
    marks, pieces = IMAGE_MARK.findall(text), IMAGE_MARK.split(text)
    spoken = [number for number, piece in enumerate(pieces) if piece.strip()]
    if not spoken:
        raise UserError("the question is empty: 'question' must be a text that is not empty")
    if not marks:
        return text
    if images == 0:
        if spoken[0] > 0 or spoken[-1] < len(marks):
            raise UserError(f"the question has the mark {marks[0]} of an image, and the row has no image")
        return text
    said = pieces[spoken[0]]
    for number in range(spoken[0], spoken[-1]):
        mark, after = marks[number], pieces[number + 1]
        own_line = said.rstrip(" \t")[-1:] in ("", "\n") and after.lstrip(" \t")[:1] in ("", "\n")
        digits = _NUMBER.search(mark)
        name = "the image" if images == 1 else f"image {int(digits[0]) if digits else number + 1}"
        said += after.lstrip() if own_line else name + after
    return said.strip()


def asked(prompt: Any) -> str:
    """What the user asked last in a chat; a prompt that is a plain text is that text.

    Args:
        prompt: A text, or messages of `role` and `content`, as a list or as JSON; `content` is a text or blocks.

    Raises:
        UserError: it is neither, or has no message of the user's.
    """
    texts = []
    for block in _blocks(prompt):
        text = block.get("text") if isinstance(block, Mapping) else block
        if isinstance(text, str):
            texts.append(text.strip() if isinstance(block, Mapping) else text)
        elif not isinstance(block, Mapping) or block.get("type") not in _IMAGE_BLOCKS:
            raise UserError(f"`prompt` holds a block that is neither text nor image: {block!r:.80}")
    return "\n".join(text for text in texts if text.strip())


def shown_images(prompt: Any) -> list[Mapping[str, Any]]:
    """The blocks of what the user asked last that hold an image, and not its place alone.

    Raises:
        UserError: see `asked`.
    """
    blocks = [block for block in _blocks(prompt) if isinstance(block, Mapping)]
    return [block for block in blocks if any(block.get(key) for key in ("image", "image_url", "url", "path", "bytes"))]


def _blocks(prompt: Any) -> list[Any]:
    """The content of the user's last message; a plain text is a block."""
    messages = messages_of(prompt)
    if isinstance(messages, str):
        return [messages]
    told = [message for message in messages if message.get("role") == "user"]
    if not told and len(messages) == 1 and messages[0].get("role") is None:
        told = messages
    if not told:
        roles = ", ".join(str(message.get("role")) for message in messages) or "none"
        raise UserError(f"`prompt` holds no question: it has no message of the user (roles: {roles:.80})")
    content = told[-1].get("content")
    return content if isinstance(content, list) else [] if content is None else [content]


def last_reply(prompt: Any) -> str | None:
    """What the assistant says at the end of a chat; None where the chat ends otherwise.

    Raises:
        UserError: see `asked`.
    """
    messages = messages_of(prompt)
    if isinstance(messages, str) or not messages or messages[-1].get("role") != "assistant":
        return None
    content = messages[-1].get("content")
    blocks = content if isinstance(content, list) else [content]
    texts = [block.get("text") if isinstance(block, Mapping) else block for block in blocks]
    return "\n".join(text for text in texts if isinstance(text, str))


def without_reply(prompt: Any) -> Any:
    """A chat without what the assistant says at its end."""
    messages = messages_of(prompt)
    ended = not isinstance(messages, str) and messages and messages[-1].get("role") == "assistant"
    return messages[:-1] if ended else prompt


def with_reply(prompt: Any, completion: Any) -> list[Any]:
    """A chat, or a text of the user's, and what the assistant says to it, as a text or as messages."""
    begun, said = messages_of(prompt), messages_of(completion)
    return [
        *([{"role": "user", "content": begun}] if isinstance(begun, str) else begun),
        *([{"role": "assistant", "content": said}] if isinstance(said, str) else said),
    ]


def messages_of(prompt: Any) -> list[Mapping[str, Any]] | str:
    """The messages of a prompt, or the text that it is; see `asked`. Those of LLaVA get the names of `role` and
    `content`."""
    if isinstance(prompt, str) and prompt.lstrip().startswith("["):
        try:
            written = json.loads(prompt)
        except (ValueError, RecursionError):
            return prompt
        prompt = written if _is_chat(written) else prompt
    if isinstance(prompt, str) or prompt is None:
        return prompt or ""
    if not _is_chat(prompt):
        raise UserError(
            f"`prompt` must be a text, or a list of messages with `role` and `content`, got {prompt!r:.80}"
        )
    return [usual_message(message) for message in prompt]


def usual_message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message under the names of `role` and `content`."""
    if "from" not in message or "value" not in message:
        return message
    speaker = message["from"]
    return {
        "role": _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker,
        "content": message["value"],
    }


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(message, Mapping) for message in value)
