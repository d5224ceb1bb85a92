"""What a scoring rule is: messages of a rollout and accepted answers in, a score and its parts out.

What a rule may read of a rollout is up to the rule; every rule gets the messages with their roles, so that the model's
own turns are told from what the environment said.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from mmsearch_trl.core.reward import RewardParts


Message = Mapping[str, Any]


def _no_query() -> str:
    raise ValueError("the prompt of this rollout is not known")


def _no_columns() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What a rule is shown.

    Attributes:
        messages: The completion, with text content.
        answers: Accepted answers; none only where the rule needs none.
        query: Prompt and completion as one text, control tokens included.
        extra: Further columns of the row.
        row: Names the row in errors.
    """

    messages: Sequence[Message]
    answers: Sequence[str]
    query: Callable[[], str] = _no_query
    extra: Callable[[], Mapping[str, Any]] = _no_columns
    row: str = "a rollout"


class Rule(ABC):
    """A way to score; most are the `reward:` section of a recipe themselves."""

    @property
    @abstractmethod
    def name(self) -> str:
        """TRL names the metric `rewards/<name>/mean` after it."""

    @property
    def needs_answers(self) -> bool:
        """Whether a row without an accepted answer is a mistake."""
        return True

    @property
    def compares_words(self) -> bool:
        """Whether answers are words, of which signs do not count (`matching.py`) and several may be a list in JSON;
        else each is one answer as it stands: `[1, 2]` is an interval, and "A" an option."""
        return True

    def unusable(self, answers: Sequence[Sequence[str]]) -> dict[int, str]:
        """Of the accepted answers of some rows, those that nothing could be scored by: their numbers, and why."""
        return {}

    def check_columns(self, columns: Mapping[str, Any]) -> None:  # noqa: B027  (most read none)
        """Look at what a row holds beside question and answers.

        Raises:
            UserError: nothing could be scored by it.
        """

    @abstractmethod
    def score_batch(self, rollouts: Sequence[Rollout], step: int | None) -> list[RewardParts]:
        """Score rollouts, in their order.

        Args:
            step: Finished optimizer steps; None where no training is under way.
        """

    def metrics_at(self, step: int | None) -> dict[str, float]:
        """What changes in the course of training, for the log."""
        return {}

    def settings(self) -> Mapping[str, Any]:
        """What of it can be set, for the model card; what is not set is left out."""
        values = asdict(self) if is_dataclass(self) else {}
        return {key: value for key, value in values.items() if value not in ((), None)}

    def close(self) -> None:  # noqa: B027  (most start nothing)
        """End what the rule has started."""


class MessageRule(Rule):
    """A rule that scores each rollout by itself, by its messages."""

    @abstractmethod
    def score_messages(self, messages: Sequence[Message], answers: Sequence[str], step: int | None) -> RewardParts:
        """Score one rollout.

        Args:
            messages: The completion, with text content.
            answers: Accepted answers, at least one.
            step: Finished optimizer steps; None where no training is under way.
        """

    def score_batch(self, rollouts: Sequence[Rollout], step: int | None) -> list[RewardParts]:
        return [self.score_messages(rollout.messages, rollout.answers, step) for rollout in rollouts]


def assistant_turns(messages: Sequence[Message]) -> list[str]:
    """The model's own turns."""
    return [message["content"] for message in messages if message["role"] == "assistant"]
