"""How long a rollout may run: a pure rule over a trajectory, so that it can be tested without an engine.

* A turn gets at most `max_turn_tokens`, and never more than what is left of the response and of the context window.
* The last turn may not search: its reply could not be answered.
* A search over its limit is not executed; the trajectory ends, or is asked for its final answer (`forced_answer`).
* A reply that does not fit is never cut: it is replaced by a short notice, or the trajectory ends (`on_overflow`).

"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from mmsearch_trl.core.action import SEARCHES, Action, ActionKind
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import Failure, Observation
from mmsearch_trl.core.trajectory import StopReason, Trajectory


if TYPE_CHECKING:  # it imports torch, and a recipe's keys are checked without
    from mmsearch_trl.protocol.chat import ChatEncoder

LIMITS_OF_ONE_TURN = ("max_turns", "max_turn_tokens", "max_response_tokens", "max_context_tokens")
"""The limits that mean something where nothing is searched for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The `rollout:` section of a recipe."""

    max_turns: int = field(default=3, metadata={"help": "Assistant turns of a trajectory."})
    max_turn_tokens: int = field(default=2048, metadata={"help": "Tokens that one turn may sample."})
    max_response_tokens: int = field(
        default=8192, metadata={"help": "Tokens after the first prompt: all turns and replies, image tokens included."}
    )
    max_context_tokens: int | None = field(
        default=None, metadata={"help": "The engine's window: prompt and response. None: as long as they get."}
    )
    image_search_limit: int = field(default=1, metadata={"help": "Image searches of a trajectory."})
    text_search_limit: int = field(default=2, metadata={"help": "Text searches of a trajectory."})
    image_search_first_turn_only: bool = field(
        default=False, metadata={"help": "Refuse an image search after the first turn, as the MMSearch-R1 paper says."}
    )
    forced_answer: bool = field(
        default=False,
        metadata={"help": "When a search is refused, ask for the final answer and grant one more turn for it."},
    )
    forced_answer_tokens: int = field(
        default=256, metadata={"help": "Tokens kept back for the forced answer, its request included."}
    )
    on_overflow: Literal["notice", "end"] = field(
        default="notice",
        metadata={"help": "A reply that does not fit is replaced by a short notice, or ends the trajectory."},
    )
    max_observation_tokens: int | None = field(
        default=None,
        metadata={
            "help": "protocol search_r1: tokens of one reply; longer results lose the end of their text, never the "
            "closing tag. None: as long as they get."
        },
    )
    max_search_failures_in_a_row: int | None = field(
        default=2,
        metadata={
            "help": "Searches that fail one after the other, through no fault of the policy, before the trajectory is "
            "given up and takes no part in training."
        },
    )

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_turn_tokens", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"rollout.{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_search_failures_in_a_row is not None and self.max_search_failures_in_a_row < 1:
            raise UserError(
                f"rollout.max_search_failures_in_a_row must be at least 1, got {self.max_search_failures_in_a_row}."
            )
        if self.max_observation_tokens is not None and self.max_observation_tokens < 64:
            raise UserError(f"rollout.max_observation_tokens must be at least 64, got {self.max_observation_tokens}.")
        for name in ("image_search_limit", "text_search_limit"):
            if getattr(self, name) < 0:
                raise UserError(f"rollout.{name} must be at least 0, got {getattr(self, name)}.")
        if self.on_overflow not in ("notice", "end"):
            raise UserError(f"rollout.on_overflow must be 'notice' or 'end', got {self.on_overflow!r}.")
        if self.forced_answer and self.forced_answer_tokens >= self.max_response_tokens:
            raise UserError("rollout.forced_answer_tokens must be smaller than rollout.max_response_tokens.")

    def should_abort(self, trajectory: Trajectory, newest: Observation) -> bool:
        """Whether so many searches in a row have failed that nothing can be learnt from the trajectory.

        `trajectory` holds the turns before the one that asked for `newest`.
        """
        most = self.max_search_failures_in_a_row
        if most is None:
            return False
        row = [*trajectory.observations, newest][-most:]
        return len(row) == most and all(seen.failure is not None and seen.failure.infrastructure for seen in row)

    def within(self, window: int) -> "Limits":
        """These limits on an engine that holds `window` tokens of prompt and response."""
        return replace(self, max_context_tokens=min(window, self.max_context_tokens or window))

    def remaining_tokens(self, trajectory: Trajectory, *, final: bool = False) -> int:
        """Tokens that may still be added; the forced answer's share is kept back until `final`."""
        used = len(trajectory.completion_ids)
        remaining = self.max_response_tokens - used
        if self.max_context_tokens is not None:
            remaining = min(remaining, self.max_context_tokens - len(trajectory.prompt_ids) - used)
        return remaining - (self.forced_answer_tokens if self.forced_answer and not final else 0)

    def turn_tokens(self, trajectory: Trajectory, *, final: bool = False) -> int:
        """Tokens that the next turn may sample; 0 or less when there is no room for one."""
        return min(self.max_turn_tokens, self.remaining_tokens(trajectory, final=final))

    def check_search(self, trajectory: Trajectory, action: Action) -> StopReason | None:
        """Why the call that the newest turn asks for may not be executed, or None when it may.

        A tool other than the two searches has a limit of its own, which it refuses by a typed failure.

        Args:
            trajectory: Holds the turns before the one that asks.
        """
        turn = len(trajectory.turns)
        if turn + 1 >= self.max_turns:
            return StopReason.TURN_LIMIT
        if action.kind not in SEARCHES:
            return None
        image = action.kind is ActionKind.IMAGE_SEARCH
        if image and turn > 0 and self.image_search_first_turn_only:
            return StopReason.SEARCH_LIMIT
        done = sum(observation.tool == action.tool for observation in trajectory.observations)
        limit = self.image_search_limit if image else self.text_search_limit
        return StopReason.SEARCH_LIMIT if done >= limit else None

    def fits(self, trajectory: Trajectory, turn_tokens: int, reply_tokens: int, *, final: bool = False) -> bool:
        """Whether a reply can follow the newest turn (not yet in `trajectory`) with room left to react to it."""
        return turn_tokens + reply_tokens < self.remaining_tokens(trajectory, final=final)

    def excuses(self, failure: Failure) -> bool:
        """Whether tokens from the turn on whose search failed so may be left out of the loss."""
        return failure.infrastructure

    def finish(self, trajectory: Trajectory, chat: "ChatEncoder") -> Trajectory:
        """A trajectory that came to its end, as it is scored and trained; limits that were kept leave it as it is."""
        return trajectory

    def attended(self, ids: Sequence[int], turn_end_id: int) -> list[int]:
        """1 on the tokens of a response that training attends to, `(c,)`: all of them."""
        return [1] * len(ids)
