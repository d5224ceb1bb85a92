"""The MMSearch-R1 protocol: what a turn asks for, and how the first prompt and the replies are worded.

A turn ends in one action: `<answer>…</answer>`, `<search><img></search>`, `<text_search>query</text_search>`, or a
call of a further tool (`protocol/tool.py`). Only the end of the turn decides about a call, as upstream does it; the
reasoning before it is not looked at. What happened to a call is told by the observation's type, never by the wording
of a reply.

Sources: paper arXiv 2506.20670 §2 and Table 3; rollout worker of EvolvingLMMs-Lab/multimodal-search-r1 at 583c6b49.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import Hit, ImageHit, Observation
from mmsearch_trl.core.tags import enclosed, last_enclosed
from mmsearch_trl.core.task import Task
from mmsearch_trl.protocol.chat import ChatEncoder, Encoded
from mmsearch_trl.protocol.prompt_files import TOOLS_SLOT, Prompts
from mmsearch_trl.protocol.reply_templates import ReplyTemplates
from mmsearch_trl.protocol.safe_text import TAGS, SafeText
from mmsearch_trl.protocol.tool import Tool


IMAGE_SEARCH_TAG = "<search><img></search>"
_TOOL_NAME = re.compile(r"[a-z][a-z0-9_]*")

Content = list[str | Image.Image]


TOOL_NAMES: Mapping[str, str] = {
    ActionKind.IMAGE_SEARCH: "Image Search Results",
    ActionKind.TEXT_SEARCH: "Text Search Results",
}


class MMSearchProtocol:
    """Reads turns and writes prompts and replies for one processor.

    Args:
        chat: Encoder of the model's processor.
        tools: What may be called besides the searches.

    Raises:
        UserError: a tool's name is no tag, is taken, or is one of the protocol's own.
    """

    stops: tuple[str, ...] = ()
    """A turn ends with the model's own end of turn, as upstream has it."""

    def __init__(
        self,
        chat: ChatEncoder,
        prompts: Prompts,
        templates: ReplyTemplates | None = None,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.chat = chat
        self.prompts = prompts
        self.templates = templates or ReplyTemplates()
        self.tools = tuple(tools)
        names = check_tool_names(self.tools)
        self.safe = SafeText(chat.tokenizer, (*TAGS, *names)) if names else chat.safe

    def prompt(self, task: Task) -> Encoded:
        """The first user message: prompt text, images and question."""
        template = self.prompts.first_turn.replace("<image>", "{image}")
        if "{question}" not in template:
            template += "{question}"
        if "{image}" not in template:
            template = "{image}" + template
        if TOOLS_SLOT not in template and self.tools:
            template += TOOLS_SLOT
        slots = {
            "question": self.safe(task.question),
            "tools": "".join(f"\n\n{tool.prompt}" for tool in self.tools),
        }
        content: Content = []
        for i, piece in enumerate(template.split("{image}")):
            content += task.images if i == 1 else ()
            content.append(_fill(piece, slots))
        return self.chat.prompt([part for part in content if part != ""])

    def read(self, text: str) -> Action:
        """What a decoded turn asks for; `text` must hold model-sampled tokens only."""
        end = text.rstrip()
        if end.endswith(IMAGE_SEARCH_TAG):
            return Action(ActionKind.IMAGE_SEARCH)
        if (query := query_at_end(end)) is not None:
            return Action(ActionKind.TEXT_SEARCH, query.strip()) if query.strip() else Action(ActionKind.NONE)
        for tool in self.tools:
            if (action := tool.read(text)) is not None:
                return action
        answer = last_enclosed(text, "answer")
        return Action(ActionKind.NONE) if answer is None else Action(ActionKind.ANSWER, answer)

    def sampled(self, completion: Completion) -> Completion:
        """The completion as it enters the transcript: ids that no model may sample are removed.

        Engines forbid vision tokens and ids outside the vocabulary; an engine of another make may not.
        """
        return self.chat.sampled(completion)

    def reply(self, observation: Observation, task: Task, sampled: Sequence[int]) -> Encoded:
        """The user message that tells the model what its call brought."""
        question = self.templates.question.replace("{question}", self.safe(task.question))
        for tool in self.tools:
            if tool.name == observation.tool:
                opening = self.templates.tool_opening.replace("{tool}", tool.name)
                body = self._inert([part for part in tool.render(observation, task) if self._can_show(part)])
                return self.chat.reply([opening, *body, self.templates.closing + question], sampled)
        if observation.failure is not None:
            text = self.templates.failure.replace("{reason}", observation.failure.kind.value.replace("_", " "))
            return self.chat.reply([text.replace("{tool}", TOOL_NAMES[observation.tool])], sampled)
        prompts = self.prompts
        image = observation.tool == ActionKind.IMAGE_SEARCH
        after = prompts.after_image_search if image else prompts.after_text_search
        body = self._inert(self._body(observation))
        return self.chat.reply([self.templates.opening, *body, self.templates.closing + question + after], sampled)

    def overflow(self, tool: str, sampled: Sequence[int]) -> Encoded:
        """The short notice that stands for a reply that does not fit."""
        return self.chat.reply([self.templates.overflow.replace("{tool}", TOOL_NAMES.get(tool, tool))], sampled)

    def ask_for_answer(self, task: Task, sampled: Sequence[int]) -> Encoded:
        """The request for the final answer after a search that was refused."""
        text = self.prompts.forced_answer.replace("{question}", self.safe(task.question))
        return self.chat.reply([text], sampled)

    def ask_again(self, sampled: Sequence[int]) -> None:
        """A turn without an action ends the trajectory."""

    def _body(self, observation: Observation) -> Content:
        templates = self.templates
        image = observation.tool == ActionKind.IMAGE_SEARCH
        if not observation.hits:
            return [templates.nothing_found.replace("{tool}", TOOL_NAMES[observation.tool])]
        content: Content = [templates.image_header if image else templates.text_header]
        for rank, hit in enumerate(observation.hits, 1):
            content += self._item(rank, hit)
        return content

    def _item(self, rank: int, hit: Hit) -> Content:
        templates = self.templates
        if not isinstance(hit, ImageHit):
            slots = {"rank": str(rank), "source": hit.url or hit.title, "title": hit.title, "text": hit.text}
            return [_fill(templates.text_item, slots)]
        slots = {"rank": str(rank), "title": hit.title}
        if hit.thumbnail is None or not self.chat.can_show(hit.thumbnail):
            return [_fill(templates.image_item_title_only, slots)]
        before, after = templates.image_item.split("{image}")
        return [_fill(before, slots), hit.thumbnail, _fill(after, slots)]

    def _can_show(self, part: str | Image.Image) -> bool:
        return isinstance(part, str) or self.chat.can_show(part)

    def _inert(self, content: Content) -> Content:
        """Join neighbouring texts, so that no token can hide in a seam, and make them inert."""
        joined: Content = []
        for part in content:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        return [self.safe(part) if isinstance(part, str) else part for part in joined]


def query_at_end(text: str) -> str | None:
    """The query of a text search with which the last line of a text ends; None where it ends otherwise."""
    line = text.rpartition("\n")[2]
    queries = list(enclosed(line, "text_search"))
    return queries[-1] if queries and line.endswith("</text_search>") else None


def check_tool_names(tools: Sequence[Tool]) -> tuple[str, ...]:
    """The names of tools, in order.

    Raises:
        UserError: one is no tag, is taken, or means something else in the protocol.
    """
    names = tuple(tool.name for tool in tools)
    for number, name in enumerate(names):
        if not _TOOL_NAME.fullmatch(name):
            raise UserError(f"the tool name {name!r} is no tag: lower-case letters, digits and _ make one")
        if name in TAGS or name in TOOL_NAMES:
            raise UserError(f"the tool name {name!r} is one of the protocol's own tags and searches")
        if name in names[:number]:
            raise UserError(f"two tools are named {name!r}")
    return names


def default_protocol(processor: Any) -> MMSearchProtocol:
    """MMSearch-R1's protocol with the project's own prompts."""
    return MMSearchProtocol(ChatEncoder(processor), Prompts.load())


def _fill(template: str, slots: dict[str, str]) -> str:
    """Fill slots in one pass, so that a value that looks like a slot stays text."""
    return re.sub(r"\{(\w+)\}", lambda match: slots.get(match[1], match[0]), template)
