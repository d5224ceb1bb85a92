"""The MMSearch-R1 protocol to the byte, as its rollout worker has it (`protocol: mmsearch_r1_upstream`).

Four things are otherwise than in `protocol/mmsearch.py`: trailing blanks behind a search tag are not forgiven; the
last id of a turn without the turn-end token is overwritten by it; a failed search is told by upstream's own sentence;
and no line break stands between the assistant's turn and the reply.

Source: rollout worker of EvolvingLMMs-Lab/multimodal-search-r1 at 583c6b49.
"""

from typing import Any

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import ANSWER, IMAGE_SEARCH, QUERY, TEXT_SEARCH, MMSearchProtocol
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
        if IMAGE_SEARCH.search(text):
            return Action(ActionKind.IMAGE_SEARCH)
        if TEXT_SEARCH.search(text):
            query = QUERY.findall(text)[-1]
            return Action(ActionKind.TEXT_SEARCH, query) if query else Action(ActionKind.NONE)
        answers = ANSWER.findall(text)
        return Action(ActionKind.ANSWER, answers[-1].strip()) if answers else Action(ActionKind.NONE)

    def sampled(self, completion: Completion) -> Completion:
        kept = self.chat.sampleable(completion)
        if kept and self.chat.turn_end_id not in (token for token, _ in kept):
            kept[-1] = (self.chat.turn_end_id, kept[-1][1])
        ids, logprobs = zip(*kept, strict=True) if kept else ((), ())
        return Completion(ids, logprobs, completion.finish_reason)
