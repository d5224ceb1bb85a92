"""A right answer, and nothing else: what a run without tools is paid for where its recipe asks for nothing more."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.tags import last_enclosed
from mmsearch_trl.rewards.checks import check_choice
from mmsearch_trl.rewards.matching import RewardMode, is_right
from mmsearch_trl.rewards.rule import Message, Rule, assistant_turns
from mmsearch_trl.rewards.sources import RewardSources


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRewardConfig(RewardSources, Rule):
    """The `reward:` section of a recipe with `protocol: direct`: 1 for a right answer, 0 for any other.

    The answer is what stands in the last `<answer>...</answer>`, or, without these tags, the whole turn; the form is
    whether they are there.

    Raises:
        UserError: The mode is unknown.
    """

    reward_mode: RewardMode = field(
        default="EM",
        metadata={"help": "EM: the answer equals a gold one. SubEM: it contains one. Both after normalisation."},
    )

    def __post_init__(self) -> None:
        RewardSources.__post_init__(self)
        check_choice("reward_mode", self.reward_mode, get_args(RewardMode))

    @property
    def scored_by(self) -> Rule:
        return self

    @property
    def name(self) -> str:
        return "answer"

    def score_messages(self, messages: Sequence[Message], answers: Sequence[str], step: int | None) -> RewardParts:
        turn = assistant_turns(messages)[-1]
        tagged = last_enclosed(turn, "answer")
        answer = turn.strip() if tagged is None else tagged
        right = float(is_right(answer, answers, self.reward_mode))
        return RewardParts(right, right, float(tagged is not None), None, answer)
