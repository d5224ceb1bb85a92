"""Supervised training on conversations, in the tokens that a rollout without tools would meet.

Each turn of the assistant is learned behind what the model is shown before it. An earlier turn is learned where the
chat template shows it as it was said; one that the template changes, as Qwen3's does with thoughts of earlier turns,
is only read.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.images import Part
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.data.dataset import row_to_task, row_without_images
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.trainer.demonstrations import collate


logger = logging.getLogger(__name__)


def answered_conversation(task: Task, chat: ChatEncoder) -> Trajectory:
    """The trajectory of a policy that said what the assistant says in a task's messages, of which the last is its own;
    log-probs are 0.

    Raises:
        UserError: the assistant speaks first, or a message would not reach the model as it is written.
    """
    messages = task.messages
    said = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not said or said[0] == 0 or said[-1] < len(messages) - 1:
        raise UserError("a demonstration begins with another's message and ends with the assistant's")
    shown = [chat.conversation(messages[:number], task.images[: _pictures(messages[:number])]) for number in said]
    sampled = [
        (*chat.tokenizer(messages[number].text, add_special_tokens=False)["input_ids"], chat.turn_end_id)
        for number in said
    ]
    # From the last turn backwards, as far as the prompt of each holds the turn before it as it was said.
    first = len(said) - 1
    while first and _begins_with(shown[first].token_ids, (*shown[first - 1].token_ids, *sampled[first - 1])):
        first -= 1
    trajectory = Trajectory(
        task=task,
        prompt=shown[first].parts,
        prompt_ids=shown[first].token_ids,
        stop=StopReason.ANSWERED,
        has_tools=False,
    )
    for place in range(first, len(said)):
        text, ids = messages[said[place]].text, sampled[place]
        reply: tuple[Part, ...] = ()
        reply_ids: tuple[int, ...] = ()
        if place + 1 < len(said):  # all that the next turn was shown behind this one
            parts, token_ids = shown[place + 1]
            reply = parts[sum(len(message.content) for message in messages[: said[place] + 1]) :]
            reply_ids = token_ids[len(shown[place].token_ids) + len(ids) :]
        trajectory.turns.append(
            Turn(
                token_ids=ids,
                logprobs=(0.0,) * len(ids),
                finish_reason=FinishReason.STOP,
                text=text,
                action=Action(ActionKind.ANSWER, text.strip()),
                reply=reply,
                reply_ids=reply_ids,
            )
        )
    return trajectory


class Conversations:
    """The demonstrations of data sets; as a collator it lays out rows `{"part", "index"}` of them.

    Args:
        parts: Rows as `load_dataset_rows` has them, by name.
        resize: Bring pictures to MMSearch-R1's size.
    """

    def __init__(self, parts: Mapping[str, Dataset], chat: ChatEncoder, *, resize: bool) -> None:
        self._parts = parts
        self._chat = chat
        self._resize = resize

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return collate([self.trajectory(**row) for row in rows], self._chat, self._chat.tokenizer.pad_token_id)

    def trajectory(self, part: str, index: int) -> Trajectory:
        """One demonstration in the tokens of a rollout."""
        return answered_conversation(row_to_task(self._parts[part][index], resize=self._resize), self._chat)

    def usable(self, part: str, max_tokens: int | None) -> Dataset:
        """The rows of a part that have no more tokens than this.

        Raises:
            UserError: a row is no demonstration, or none is left.
        """
        kept = []
        rows = cast("Iterable[dict[str, Any]]", self._parts[part].remove_columns("images"))
        for index, row in enumerate(tqdm(rows, desc=f"Checking {part}", unit="conversation", leave=False)):
            task = row_without_images(row, resize=self._resize)
            length = len(answered_conversation(task, self._chat).token_ids)
            if max_tokens is None or length <= max_tokens:
                kept.append({"part": part, "index": index})
        if long := len(self._parts[part]) - len(kept):
            logger.warning("left out %d conversations of more than max_length %s tokens", long, max_tokens)
        if not kept:
            raise UserError(
                f"max_length is {max_tokens}, and each of the {long} conversations has more tokens: raise it"
            )
        return Dataset.from_list(kept)


def _pictures(messages: Iterable[Message]) -> int:
    return sum(message.pictures for message in messages)


def _begins_with(ids: Sequence[int], beginning: Sequence[int]) -> bool:
    return tuple(ids[: len(beginning)]) == tuple(beginning)
