"""A tool besides the two searches: what one file has to say about it, and nothing else in the house has to know.

A tool is called by its name as a tag, `<name>arguments</name>`, at the end of a turn. Whoever has the protocol has its
tools: the rollout runs them (`rollout/toolbox.py`), metrics and traces name them, pages cannot forge their tags.
"""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory


class Tool(Protocol):
    """One tool. It holds no state of a rollout: what was called before stands in the trajectory."""

    @property
    def name(self) -> str:
        """Its tag, and its name in actions, observations, traces and metrics; a lower-case identifier."""
        ...

    @property
    def prompt(self) -> str:
        """What the first prompt says of it, without images; braces mean nothing in it."""
        ...

    def read(self, text: str) -> Action | None:
        """The call with which a decoded turn ends; None where it does not end with one. `called` reads a plain tag."""
        ...

    async def run(self, action: Action, trajectory: Trajectory) -> Observation:
        """Carry out a call; the turn that makes it is not yet in `trajectory`.

        A call that the policy may not make, or got wrong, is a failure of kind `INVALID_QUERY`, in the observation or
        raised; every other kind says that the policy is not to blame.

        Raises:
            SearchError: the call cannot be answered.
        """
        ...

    def render(self, observation: Observation, task: Task) -> Sequence[str | Image.Image]:
        """What the model is told of an outcome, a failure too; texts are made inert by the protocol."""
        ...


def called(name: str, text: str) -> Action | None:
    """The call `<name>arguments</name>` with which a turn ends, white space aside; the arguments hold no `<`."""
    opening, closing, end = f"<{name}>", f"</{name}>", text.rstrip()
    if not end.endswith(closing):
        return None
    begin = end.rfind(opening)
    arguments = end[begin + len(opening) : -len(closing)]
    if begin < 0 or "<" in arguments:
        return None
    return Action(ActionKind.TOOL, arguments.strip(), name)
