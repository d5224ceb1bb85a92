"""The MMSearch-R1 protocol to the byte, as its rollout worker has it (`protocol: mmsearch_r1_upstream`).

Four things are otherwise than in `protocol/mmsearch.py`: trailing blanks behind a search tag are not forgiven; the
last id of a turn without the turn-end token is overwritten by it; a failed search is told by upstream's own sentence;
and no line break stands between the assistant's turn and the reply.

Source: rollout worker of EvolvingLMMs-Lab/multimodal-search-r1 at 583c6b49.
"""

from typing import Any

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion
from mmsearch_trl.core.tags import last_enclosed
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import IMAGE_SEARCH_TAG, MMSearchProtocol, query_at_end
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.protocol.reply_templates import UPSTREAM_FAILURE, ReplyTemplates


class UpstreamMMSearchProtocol(MMSearchProtocol):
    """Reads turns and writes prompts and replies as MMSearch-R1 does.

    Args:
        processor: Of the model; the protocol makes its own encoder, for upstream frames replies in its own way.
    """

    def __init__(self, processor: Any, prompts: Prompts, templates: ReplyTemplates | None = None) -> None:
        chat = ChatEncoder(processor, upstream_framing=True)
        super().__init__(chat, prompts, templates or ReplyTemplates(failure=UPSTREAM_FAILURE))

    def read(self, text: str) -> Action:
        end = text.removesuffix("\n")  # one line break, as `$` has it
        if end.endswith(IMAGE_SEARCH_TAG):
            return Action(ActionKind.IMAGE_SEARCH)
        if (query := query_at_end(end)) is not None:
            return Action(ActionKind.TEXT_SEARCH, query) if query else Action(ActionKind.NONE)
        answer = last_enclosed(text, "answer")
        return Action(ActionKind.NONE) if answer is None else Action(ActionKind.ANSWER, answer)

    def sampled(self, completion: Completion) -> Completion:
        kept = self.chat.sampleable(completion)
        if kept and self.chat.turn_end_id not in (token for token, _ in kept):
            kept[-1] = (self.chat.turn_end_id, kept[-1][1])
        ids, logprobs = zip(*kept, strict=True) if kept else ((), ())
        return Completion(ids, logprobs, completion.finish_reason)
