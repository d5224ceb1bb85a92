"""A right answer in words, and nothing else: 1 for a right one, 0 for any other.

The answer is what stands in the last `<answer>...</answer>`, or, without these tags, the whole turn; the form is
whether they are there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.tags import last_enclosed
from mmsearch_trl.rewards.matching import RewardMode, is_right
from mmsearch_trl.rewards.rule import Message, MessageRule, assistant_turns


class AnswerRule(MessageRule):
    """
    Args:
        mode: Whether the answer must equal a gold one or contain it.
    """

    def __init__(self, mode: RewardMode) -> None:
        self._mode: RewardMode = mode

    @property
    def name(self) -> str:
        return "answer"

    def score_messages(self, messages: Sequence[Message], answers: Sequence[str], step: int | None) -> RewardParts:
        turn = "".join(assistant_turns(messages)[-1:])
        tagged = last_enclosed(turn, "answer")
        answer = turn.strip() if tagged is None else tagged
        right = float(is_right(answer, answers, self._mode))
        return RewardParts(right, right, float(tagged is not None), None, answer)

    def settings(self) -> Mapping[str, Any]:
        return {"rule": self.name, "reward_mode": self._mode}
