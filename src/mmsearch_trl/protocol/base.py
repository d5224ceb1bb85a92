"""What the rollout asks of a protocol: how turns are cut and read, and what the environment says.

A `TurnProtocol` is enough for a rollout of one turn. One in which tools can be called is a `SearchProtocol`: whether a
run has tools is asked of its protocol, and of nothing else.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mmsearch_trl.core.action import Action
from mmsearch_trl.core.completion import Completion
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.protocol.chat import ChatEncoder, Encoded
from mmsearch_trl.protocol.tool import Tool


class TurnProtocol(Protocol):
    """How a task is put to a model, and what its turns mean.

    Attributes:
        chat: Encodes for the model.
        stops: Texts at which an engine ends a turn.
    """

    chat: ChatEncoder
    stops: tuple[str, ...]

    def prompt(self, task: Task) -> Encoded:
        """All that stands before the first turn."""
        ...

    def read(self, text: str) -> Action:
        """What a decoded turn asks for; `text` must hold model-sampled tokens only."""
        ...

    def sampled(self, completion: Completion) -> Completion:
        """The completion as it enters the transcript and is trained: ids may be left out, none is changed."""
        ...


@runtime_checkable
class SearchProtocol(TurnProtocol, Protocol):
    """One family of tags, by which searches and other tools are called.

    Attributes:
        tools: What may be called besides the searches.
    """

    tools: tuple[Tool, ...]

    def reply(self, observation: Observation, task: Task, sampled: Sequence[int]) -> Encoded:
        """What tells the model the outcome of its search."""
        ...

    def overflow(self, tool: str, sampled: Sequence[int]) -> Encoded:
        """The short notice that stands for a reply that does not fit."""
        ...

    def ask_for_answer(self, task: Task, sampled: Sequence[int]) -> Encoded:
        """The request for the final answer after a search that was refused."""
        ...

    def ask_again(self, sampled: Sequence[int]) -> Encoded | None:
        """The notice to a turn without an action; None where such a turn ends the trajectory."""
        ...
