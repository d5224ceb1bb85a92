"""A trajectory: what happened in one rollout, turn by turn.

Token ids, masks, log-probs, images and messages are derived by concatenating the turns and are never kept twice, so
they cannot disagree: every sampled id is stored once, in the turn that sampled it, and trained as it was sampled.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mmsearch_trl.core.action import SEARCHES, Action
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.images import ImageInput, Part
from mmsearch_trl.core.observation import Failure, Observation
from mmsearch_trl.core.task import Task


class StopReason(StrEnum):
    """Why a trajectory ended."""

    ANSWERED = "answered"
    NO_ACTION = "no_action"
    TURN_LIMIT = "turn_limit"
    SEARCH_LIMIT = "search_limit"
    TOKEN_LIMIT = "token_limit"
    FAILED = "failed"
    STRAGGLER = "straggler"
    """Its batch closed without it (`rollout/stragglers.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One assistant turn and, unless it was the last, the reply to it.

    Attributes:
        token_ids: Sampled ids, the end-of-turn token included, `(n,)`.
        logprobs: Sampling log-probs, nats, `(n,)`.
        text: The decoded turn without special tokens: what actions and rewards read.
        observation: The tool's outcome; None on the last turn and where the reply asks for a final answer.
        reply: The reply as message parts, as rendered; empty on the last turn.
        reply_ids: The reply's tokens with its chat framing, image pads expanded, `(m,)`.
        generation_seconds: Wall time of the engine call.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    text: str
    action: Action
    observation: Observation | None = None
    reply: tuple[Part, ...] = ()
    reply_ids: tuple[int, ...] = ()
    generation_seconds: float = 0.0

    @property
    def reply_images(self) -> tuple[ImageInput, ...]:
        return tuple(part for part in self.reply if isinstance(part, ImageInput))


@dataclass(slots=True, kw_only=True)
class Trajectory:
    """One rollout of one task.

    Attributes:
        prompt: The first user message, or all messages of a conversation, as parts.
        prompt_ids: Its tokens with chat framing, image pads expanded.
        failure: Why the rollout could not go on, when `stop` is `FAILED`.
        stop: None while it is going on.
        has_tools: Its protocol knows calls of tools.
    """

    task: Task
    prompt: tuple[Part, ...]
    prompt_ids: tuple[int, ...]
    turns: list[Turn] = field(default_factory=list)
    stop: StopReason | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    has_tools: bool = True

    @property
    def aborted(self) -> bool:
        """It ended through no doing of the policy, so it earned no reward and is no evidence about it."""
        return self.stop in (StopReason.FAILED, StopReason.STRAGGLER)

    @property
    def truncated(self) -> bool:
        """It ended for want of tokens: its last turn was cut short, or what was to follow it did not fit."""
        cut_short = bool(self.turns) and self.turns[-1].finish_reason is FinishReason.LENGTH
        return not self.aborted and (cut_short or self.stop is StopReason.TOKEN_LIMIT)

    @property
    def prompt_images(self) -> list[ImageInput]:
        return [part for part in self.prompt if isinstance(part, ImageInput)]

    @property
    def images(self) -> list[ImageInput]:
        """Every image of the trajectory in the order of its pads."""
        return self.prompt_images + [image for turn in self.turns for image in turn.reply_images]

    @property
    def completion_ids(self) -> list[int]:
        """All ids after the first prompt: sampled turns and replies interleaved, `(c,)`."""
        return [token for turn in self.turns for token in (*turn.token_ids, *turn.reply_ids)]

    @property
    def token_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.completion_ids]

    @property
    def loss_mask(self) -> list[int]:
        """1 on every sampled token (end-of-turn tokens included), 0 on replies, aligned with `completion_ids`."""
        return [bit for turn in self.turns for bit in (*(1,) * len(turn.token_ids), *(0,) * len(turn.reply_ids))]

    @property
    def logprobs(self) -> list[float]:
        """Sampling log-probs aligned with `completion_ids`, 0.0 on replies."""
        return [value for turn in self.turns for value in (*turn.logprobs, *(0.0,) * len(turn.reply_ids))]

    @property
    def responses(self) -> list[str]:
        """The model's own turns as text: all that a reward may read."""
        return [turn.text for turn in self.turns]

    @property
    def observations(self) -> Iterator[Observation]:
        return (turn.observation for turn in self.turns if turn.observation is not None)

    @property
    def searches(self) -> Iterator[Observation]:
        """Searches that were put to a tool, whether or not it answered: not those that nobody could carry out, such as
        an image search without an image, and no calls of other tools."""
        searches = (observation for observation in self.observations if observation.tool in SEARCHES)
        return (each for each in searches if each.failure is None or each.failure.infrastructure)

    @property
    def searched(self) -> bool | None:
        """Whether it searched; None where there was nothing to search with."""
        return any(True for _ in self.searches) if self.has_tools else None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The completion as chat messages, text only: what TRL's reward functions and completion tables take."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            messages.append({"role": "assistant", "content": turn.text})
            if turn.reply:
                text = "".join(part if isinstance(part, str) else "<image>" for part in turn.reply)
                messages.append({"role": "user", "content": text})
        return messages
