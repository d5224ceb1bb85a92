"""The Search-R1 protocol: think, search, read what was found, answer, all inside one turn of the assistant.

A piece of the assistant's turn ends with its first `</search>`, or, without one, with its first `</answer>`; its first
pair of tags is its action. What a search found stands behind it as it is, `<information>…</information>`, without
chat framing, and so does the notice to a piece without an action; then the model writes on.

Three things are done otherwise than upstream:

* Engines stop at either closing tag, so that what a model goes on to write behind an answer is not sampled.
* Results over `max_observation_tokens` lose the end of their text and never `</information>`.
* The ids that were sampled are kept and trained: where a token reaches beyond the closing tag it stays whole. Upstream
  cuts the text and tokenises it anew, and so trains other ids than were sampled.

Sources: paper arXiv 2503.09516 §3; `search_r1/llm_agent/generation.py` of PeterGriffinJin/Search-R1.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import Hit, Observation, TextHit
from mmsearch_trl.core.tags import enclosed
from mmsearch_trl.core.task import Task
from mmsearch_trl.engine.stops import end_of_stop
from mmsearch_trl.protocol.chat import ChatEncoder, Encoded
from mmsearch_trl.protocol.prompt_files import QUESTION_SLOT, load_prompt
from mmsearch_trl.protocol.tool import Tool


SEARCH_END, ANSWER_END = "</search>", "</answer>"
OPENING, CLOSING = "\n\n<information>", "</information>\n\n"
NOTICE = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. If "
    "I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)
"""Upstream's sentence, which its checkpoints were trained on."""

_MOST_CUT = 3
"""Tokens at most that are left of a character (of up to four) which is cut; any more of them stood in the page."""
_KINDS = {"search": ActionKind.TEXT_SEARCH, "answer": ActionKind.ANSWER}


class SearchR1Protocol:
    """Reads turns and writes prompts and replies for one model, of language alone or of vision too.

    Args:
        prompt: The first user message, with one `{question}`; default: the shipped one (`load_search_r1_prompt`).
        max_observation_tokens: Most tokens of a reply, its tags included; None for any number.

    Raises:
        UserError: that is too few for the tags alone.
    """

    stops: tuple[str, ...] = (SEARCH_END, ANSWER_END)
    tools: tuple[Tool, ...] = ()

    def __init__(
        self, chat: ChatEncoder, prompt: str | None = None, *, max_observation_tokens: int | None = None
    ) -> None:
        self.chat = chat
        self.prompt_text = prompt or load_search_r1_prompt()
        self.max_observation_tokens = max_observation_tokens
        tags = len(chat.continuation(OPENING + CLOSING).token_ids)
        if max_observation_tokens is not None and max_observation_tokens < 2 * tags:
            raise UserError(f"max_observation_tokens is {max_observation_tokens}, and the tags alone take {tags}")

    def prompt(self, task: Task) -> Encoded:
        """The first user message: the task's images, if it has any, then the text with the question in it.

        Raises:
            UserError: there are images and the model sees none.
        """
        question = self.chat.safe(task.question.strip())
        question += "" if question.endswith("?") else "?"
        return self.chat.prompt([*task.images, self.prompt_text.replace(QUESTION_SLOT, question)])

    def read(self, text: str) -> Action:
        """What a decoded turn asks for: its first pair of tags."""
        first = [(text.find(f"<{tag}>"), tag, content) for tag in _KINDS for content in islice(enclosed(text, tag), 1)]
        if not first:
            return Action(ActionKind.NONE)
        _, tag, content = min(first)
        return Action(_KINDS[tag], content.strip())

    def sampled(self, completion: Completion) -> Completion:
        """The completion cut behind its action; without one, also without the end of turn, for the turn goes on."""
        chat = self.chat
        kept = chat.sampleable(completion)
        ids = [token for token, _ in kept]
        end = end_of_stop(ids, (SEARCH_END,), chat.decode) or end_of_stop(ids, (ANSWER_END,), chat.decode)
        reason = completion.finish_reason if end is None else FinishReason.STOP
        kept = kept[: chat.without_end(ids) if end is None else end]
        return Completion(tuple(token for token, _ in kept), tuple(logprob for _, logprob in kept), reason)

    def reply(self, observation: Observation, task: Task, sampled: Sequence[int]) -> Encoded:
        """The block of results behind the search."""
        return self._information(_text(observation))

    def overflow(self, tool: str, sampled: Sequence[int]) -> Encoded:
        return self._information("The results are too long to be shown.")

    def ask_for_answer(self, task: Task, sampled: Sequence[int]) -> Encoded:
        return self._information("No search is left. Answer with what you know.")

    def ask_again(self, sampled: Sequence[int]) -> Encoded:
        return self.chat.continuation(NOTICE)

    def _information(self, text: str) -> Encoded:
        inert = self.chat.safe(text)
        whole = self.chat.continuation(f"{OPENING}{inert}{CLOSING}")
        if self.max_observation_tokens is None or len(whole.token_ids) <= self.max_observation_tokens:
            return whole
        closing = self.chat.continuation(CLOSING).token_ids
        kept = self.chat.continuation(OPENING + inert).token_ids[: self.max_observation_tokens - len(closing)]
        for _ in range(_MOST_CUT):
            if self.chat.decode(kept).endswith("\N{REPLACEMENT CHARACTER}"):
                kept = kept[:-1]
        return Encoded((self.chat.decode(kept) + CLOSING,), (*kept, *closing))


def load_search_r1_prompt(path: str | Path | None = None) -> str:
    """The first prompt from a file; None takes the one that ships with the package.

    Raises:
        UserError: the file is missing, is no prompt, or does not hold `{question}` exactly once.
    """
    prompt = load_prompt(path, "search_r1")
    if prompt.count(QUESTION_SLOT) != 1:
        raise UserError(
            f"{path}: a first prompt of Search-R1's protocol holds {QUESTION_SLOT} exactly once, this one "
            f"{prompt.count(QUESTION_SLOT)} times"
        )
    return prompt


def _text(observation: Observation) -> str:
    if observation.failure is not None:
        return f"The search could not be carried out ({observation.failure.kind.value.replace('_', ' ')})."
    if not observation.hits:
        return "The search found nothing."
    return "".join(_passage(rank, hit) for rank, hit in enumerate(observation.hits, 1)).strip()


def _passage(rank: int, hit: Hit) -> str:
    title, text = hit.title, hit.text if isinstance(hit, TextHit) else ""
    if not title and "\n" not in text:  # as upstream, which takes a passage's first line for its title
        title, text = text, ""
    return f"Doc {rank}(Title: {title}) {text}\n"
