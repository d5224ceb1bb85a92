"""The protocol without tools: the model is shown a conversation, and its whole turn is the answer.

What stands in the conversation is the data set's, and is trusted: it reaches the model as it is written, in the
model's own chat template. What an answer is worth, and what form it must have, is the reward's to say.
"""

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.task import Task
from mmsearch_trl.protocol.chat import ChatEncoder, Encoded


class DirectProtocol:
    """Puts conversations to one model, of language alone or of vision too, and takes a turn for the answer."""

    stops: tuple[str, ...] = ()
    """A turn ends with the model's own end of turn."""

    def __init__(self, chat: ChatEncoder) -> None:
        self.chat = chat

    def prompt(self, task: Task) -> Encoded:
        """The conversation; of a task that has none, one message of the user: its images, then its question.

        Raises:
            UserError: a text would become a control token, or the chat template refuses the conversation.
        """
        asked = Message("user", (*(None for _ in task.images), task.question))
        return self.chat.conversation(task.messages or (asked,), task.images)

    def read(self, text: str) -> Action:
        return Action(ActionKind.ANSWER, text.strip())

    def sampled(self, completion: Completion) -> Completion:
        return self.chat.sampled(completion)
