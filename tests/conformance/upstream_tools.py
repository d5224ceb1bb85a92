"""Search functions of MMSearch-R1's own signature, for its recorded rollouts: they answer with ready-made text.

    call_image_search(image_url) -> (text, images, {"success": bool, "num_images": int})
    call_text_search(query)      -> (text, {"success": bool, "num_results": int})

The text holds one placeholder an image. Failure is read from the statistics, or from upstream's own error sentence at
the start of the text; placeholders and images that differ in number are a failure, where upstream crashes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tiny
from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, ImageQuery, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.protocol.chat import Encoded
from mmsearch_trl.protocol.upstream_mmsearch import UpstreamMMSearchProtocol


PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
_HEADINGS = {ActionKind.IMAGE_SEARCH: "[Image Search Results]", ActionKind.TEXT_SEARCH: "[Text Search Results]"}
_ERROR = " There is an error encountered"

ImageTool = Callable[[Any], tuple[str, Sequence[Image.Image], Mapping[str, Any]]]
TextTool = Callable[[str], tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyMade(Observation):
    """An outcome that its tool has written out."""

    text: str
    images: tuple[Image.Image, ...] = ()


class UpstreamTools(tiny.SearchTools):
    """Searches by functions of upstream's signature, with the calls that were made."""

    def __init__(self, call_image_search: ImageTool, call_text_search: TextTool) -> None:
        self._image, self._text = call_image_search, call_text_search
        self.calls: list[list[str]] = []

    async def image_search(self, query: ImageQuery) -> Observation:
        self.calls.append(["image", str(query.url)])
        return _observed(ActionKind.IMAGE_SEARCH, self._image(query.url), 3)

    async def text_search(self, query: str) -> Observation:
        self.calls.append(["text", query])
        return _observed(ActionKind.TEXT_SEARCH, self._text(query), 2)


class ReadyMadeProtocol(UpstreamMMSearchProtocol):
    """Hands ready-made text on: framed like results where it has a heading, else as it stands."""

    def reply(self, observation: Observation, task: Task, sampled: Sequence[int]) -> Encoded:
        if not isinstance(observation, ReadyMade):
            return super().reply(observation, task, sampled)
        first, *rest = observation.text.split(PLACE)
        content: list[str | Image.Image] = [first]
        for image, piece in zip(observation.images, rest, strict=True):
            content += [image, piece]
        body = [self.chat.safe(part) if isinstance(part, str) else part for part in content]
        after = self._after(observation.text)
        if after is None:
            return self.chat.reply(body, sampled)
        question = self.templates.question.replace("{question}", self.chat.safe(task.question))
        return self.chat.reply([self.templates.opening, *body, self.templates.closing + question + after], sampled)

    def _after(self, text: str) -> str | None:
        """Upstream looks for both headings anywhere in the text, the image search's first, whatever was asked."""
        prompts = {
            ActionKind.IMAGE_SEARCH: self.prompts.after_image_search,
            ActionKind.TEXT_SEARCH: self.prompts.after_text_search,
        }
        fine = [tool for tool, heading in _HEADINGS.items() if heading in text and heading + _ERROR not in text]
        return next((prompts[tool] for tool in fine if prompts[tool]), None)


def _observed(tool: ActionKind, reply: Any, count: int) -> Observation:
    try:
        if not isinstance(reply, tuple | list) or len(reply) != count or not isinstance(reply[0], str):
            raise SearchError(FailureKind.BAD_RESPONSE, f"the tool must return text and {count - 1} values more")
        text, *images, statistics = reply
        if isinstance(statistics, Mapping) and statistics.get("success") is False:
            raise SearchError(FailureKind.UNAVAILABLE, "the tool reported that it did not succeed")
        if text.lstrip().startswith(tuple(heading + _ERROR for heading in _HEADINGS.values())):
            raise SearchError(FailureKind.UNAVAILABLE, "the tool returned its error sentence")
        found = tuple(images[0]) if images else ()
        places = text.count(PLACE)
        if places != len(found) or text.count("<|image_pad|>") != places:
            raise SearchError(FailureKind.BAD_RESPONSE, f"{places} image placeholders and {len(found)} images")
    except SearchError as error:
        return Observation(tool=tool, failure=error.failure)
    return ReadyMade(tool=tool, text=text, images=found)
