"""Message parts to token ids, through the model's own chat template.

The template is asked for a conversation with a marker where the assistant spoke; what it writes after the marker is
the reply with all its framing. So any template works, nothing the model sampled is encoded again, and an image is
framed in a reply exactly as in the first prompt. Where the template would begin the turn with `<think>`, as that of
Qwen3.5 does, it is asked not to think: protocols have tags of their own, and see what a turn begins with.

Invariant, checked on every call: the ids hold as many image pads as the images have tokens, in order, and no control
token that the template did not write.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from PIL import Image

from mmsearch_trl.core.completion import Completion
from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.images import ImageInput, Part
from mmsearch_trl.core.message import Message
from mmsearch_trl.engine.images import ImageEncoder
from mmsearch_trl.models.family import SUPPORTED
from mmsearch_trl.protocol.control_tokens import ControlTokens
from mmsearch_trl.protocol.safe_text import SafeText


_ASSISTANT = "ASSISTANT-TURN-MARKER"
_GEOMETRY = ("patch_size", "merge_size")


class Encoded(NamedTuple):
    """A message as parts (images encoded) and as token ids with chat framing, image pads expanded."""

    parts: tuple[Part, ...]
    token_ids: tuple[int, ...]


class ChatEncoder:
    """Encodes prompts and replies for one processor.

    Args:
        processor: A Qwen-VL style processor: a tokenizer with a chat template, an image processor and one image token;
            or the tokenizer of a language model, which is shown no images.
        upstream_framing: Leave out the line break between the end of the assistant's turn and the reply, as
            MMSearch-R1 does.

    Raises:
        UserError: there is no chat template, or the tokenizer is empty.
    """

    def __init__(self, processor: Any, *, upstream_framing: bool = False) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not (getattr(processor, "chat_template", None) or self.tokenizer.chat_template):
            raise UserError(
                f"{self.tokenizer.name_or_path or 'the model'} has no chat template: take its instruct variant, or "
                "put a chat_template.jinja beside the model"
            )
        self.sees_images = self.tokenizer is not processor
        needed = [(processor, "image_token"), *((getattr(processor, "image_processor", None), n) for n in _GEOMETRY)]
        if self.sees_images and not all(hasattr(part, name) for part, name in needed):
            raise UserError(
                f"{self.tokenizer.name_or_path or 'the model'}: {type(processor).__name__} makes tokens of images in "
                f"another way than Qwen-VL: what can be trained is {SUPPORTED}"
            )
        self._template_options: dict[str, Any] = {}
        if _opens_thinking(self._first_message(["-"])):
            self._template_options = {"enable_thinking": False}
        self.opens_thinking = _opens_thinking(self._first_message(["-"]))
        """Whether the template writes `<think>` all the same, so that no turn begins with one."""
        self.images = ImageEncoder(processor.image_processor if self.sees_images else None)
        self.safe = SafeText(self.tokenizer)
        self._upstream_framing = upstream_framing
        self._controls = ControlTokens(processor)
        self.image_pad_id = self._controls.image_pad
        """Below 0 for a language model."""
        self.vocabulary_size = 1 + max(self.tokenizer.get_vocab().values())
        """Ids from here on have no token (ids may have gaps, so the number of tokens does not tell)."""
        self.vision_ids = self._controls.vision
        self.forbidden_ids = self.vision_ids | self._controls.tools
        """What a turn may not sample: images, and calls in the model's own tool format, which nothing here answers."""
        self._prompt_controls = self._controls.count(self._ids(self._first_message(["-"])))
        self._image_controls = 0
        if self.sees_images:
            self._image_controls = (
                self._controls.count(self._ids(self._first_message(["-", None]))) - self._prompt_controls
            )
        frame = self._ids(self._after_assistant(["-"]))
        if not frame:
            raise UserError(
                f"{self.tokenizer.name_or_path or 'the model'}: the tokenizer has no token for the end of a turn, as "
                "one whose files are missing"
            )
        self._reply_controls = self._controls.count(frame)
        self.turn_end_id: int = frame[0]
        """The token with which the template closes an assistant turn."""
        self._conversation_controls: dict[tuple[str, ...], int] = {}
        """Control tokens that the template writes, by the roles of a conversation."""

    def prompt(self, content: Sequence[str | Image.Image]) -> Encoded:
        """Encode the first user message, up to where the assistant starts to speak."""
        parts = self._encode_images(content)
        return Encoded(parts, self._expand(self._ids(self._first_message(parts)), self._prompt_controls, parts))

    def conversation(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> Encoded:
        """Encode trusted messages, texts as they are written, up to where the assistant starts to speak.

        The ids are those of the processor's own `apply_chat_template`.

        Args:
            images: Those that the messages show, in order.

        Raises:
            UserError: see `check_conversation`; or the messages show another number of images.
        """
        if sum(message.pictures for message in messages) != len(images):
            raise UserError(f"the messages do not show {len(images)} pictures, which the task has")
        waiting = iter(self._encode_images(images))
        parts = [next(waiting) if part is None else part for message in messages for part in message.content]
        return Encoded(tuple(parts), self._expand(*self._conversation_ids(messages), parts))

    def check_conversation(self, messages: Sequence[Message]) -> None:
        """
        Raises:
            UserError: a text would become a control token or an image placeholder, or the template refuses the roles.
        """
        pictures = sum(message.pictures for message in messages) if self.sees_images else 0
        self._check_controls(*self._conversation_ids(messages), pictures)

    def _conversation_ids(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """The ids of a conversation, a pad for each image, and how many control tokens the template writes in it."""
        for message in messages:
            self._check_text(message)
        roles = tuple(message.role for message in messages)
        if roles not in self._conversation_controls:
            bare = [{"role": role, "content": self._content(["-"])} for role in roles]
            self._conversation_controls[roles] = self._controls.count(self._ids(self._render(bare)))
        written = [{"role": message.role, "content": self._content(message.content)} for message in messages]
        return self._ids(self._render(written)), self._conversation_controls[roles]

    def _check_text(self, message: Message) -> None:
        for text in "".join("\0" if part is None else part for part in message.content).split("\0"):
            if not self._controls.may_be_in(text):
                continue
            found = next((token for token in self._ids(text) if token in self._controls), None)
            if found is not None:
                raise UserError(
                    f"a message of the {message.role} holds {self.tokenizer.convert_ids_to_tokens(found)!r}, which is "
                    "a control token of the model: take it out; pictures are named by blocks of type image"
                )

    def reply(self, content: Sequence[str | Image.Image], sampled: Sequence[int]) -> Encoded:
        """Encode a user message that follows the sampled turn, from the turn's end to the next turn's start.

        Args:
            sampled: The turn's ids. Where the model did not end it itself, the reply begins by ending it.
        """
        parts = self._encode_images(content)
        ids = self._expand(self._ids(self._after_assistant(parts)), self._reply_controls, parts)
        return Encoded(parts, ids[1:] if sampled and sampled[-1] == self.turn_end_id else ids)

    def continuation(self, text: str) -> Encoded:
        """Encode text that goes on in the assistant's own turn, without any framing.

        Raises:
            UserError: a control token would come of it.
        """
        return Encoded((text,), self._expand(self._ids(text), 0, (text,)))

    def sampleable(self, completion: Completion) -> list[tuple[int, float]]:
        """Ids that a model may sample, with their log-probs; an engine may not have forbidden all others."""
        return [
            (token, logprob)
            for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True)
            if token not in self.vision_ids and token < self.vocabulary_size
        ]

    def sampled(self, completion: Completion) -> Completion:
        """The completion without ids that no model may sample.

        Engines forbid vision tokens and ids outside the vocabulary; an engine of another make may not.
        """
        kept = self.sampleable(completion)
        if len(kept) == len(completion.token_ids):
            return completion
        ids, logprobs = zip(*kept, strict=True) if kept else ((), ())
        return Completion(ids, logprobs, completion.finish_reason)

    def without_end(self, sampled: Sequence[int]) -> int:
        """How many of the sampled ids remain without the control tokens at their end."""
        end = len(sampled)
        while end and sampled[end - 1] in self._controls:
            end -= 1
        return end

    @property
    def controls_fingerprint(self) -> str:
        """Names what `check_conversation` refuses among the same of other models."""
        template = str(getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template)
        return hashlib.sha256(json.dumps([sorted(self._controls.texts), template]).encode()).hexdigest()

    def can_show(self, image: Image.Image) -> bool:
        """Whether the model takes an image; Qwen's processor refuses one 200 times as long as it is wide."""
        try:
            self.images.encode(image)
        except UserError:
            return False
        return True

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def spelled(self, token_ids: Sequence[int]) -> str:
        """Text with its control tokens, image tokens one by one."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def outlined(self, token_ids: Sequence[int]) -> str:
        """Text with its control tokens, a run of image tokens by its length."""
        parts = []
        for image, run in groupby(token_ids, lambda token: token == self.image_pad_id):
            tokens = list(run)
            text = self.tokenizer.decode(tokens[:1] if image else tokens, skip_special_tokens=False)
            parts.append(f"{text} x {len(tokens)} " if image else text)
        return "".join(parts)

    def _encode_images(self, content: Sequence[str | Image.Image]) -> tuple[Part, ...]:
        return tuple(part if isinstance(part, str) else self.images.encode(part) for part in content)

    def _first_message(self, parts: Sequence[Part | None]) -> str:
        return self._render([{"role": "user", "content": self._content(parts)}])

    def _after_assistant(self, parts: Sequence[Part]) -> str:
        """What the template writes after an assistant turn when the user says `parts`."""
        dialogue = [
            {"role": "user", "content": self._content(["-"])},
            {"role": "assistant", "content": self._content([_ASSISTANT])},
            {"role": "user", "content": self._content(parts)},
        ]
        text = self._render(dialogue).split(_ASSISTANT, 1)[1]
        return text.replace(">\n<", "><", 1) if self._upstream_framing else text

    def _content(self, parts: Sequence[Part | None]) -> str | list[dict]:
        """Message content as the template wants it: blocks, or a text where no image can be among them."""
        if not self.sees_images:
            return "".join(part for part in parts if isinstance(part, str))
        return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]

    def _render(self, messages: list[dict]) -> str:
        options = self._template_options
        try:
            return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        except TemplateError as error:  # such as Gemma's, which has no role `system`
            roles = shortened(", ".join(message["role"] for message in messages), 120)
            raise UserError(f"the model's chat template refuses a conversation of {roles}: {error}") from error

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _expand(self, ids: Sequence[int], framing: int, parts: Sequence[Part]) -> tuple[int, ...]:
        """Repeat each image pad as often as its image has tokens; `framing` is the template's own control tokens."""
        images = [part for part in parts if isinstance(part, ImageInput)]
        self._check_controls(ids, framing, len(images))
        expanded: list[int] = []
        remaining = iter(images)
        for token in ids:
            expanded += [token] * next(remaining).num_tokens if token == self.image_pad_id else [token]
        return tuple(expanded)

    def _check_controls(self, ids: Sequence[int], framing: int, images: int) -> None:
        expected, found = framing + images * self._image_controls, self._controls.count(ids)
        if list(ids).count(self.image_pad_id) != images or found != expected:
            raise UserError(
                f"A message holds {found} control tokens where its template writes {expected}: text "
                "became a control token or an image placeholder. Prompt files must hold none; use {image} for images."
            )


def _opens_thinking(prompt: str) -> bool:
    return prompt.rstrip().endswith("<think>")
