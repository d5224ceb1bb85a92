"""The Search-R1 rewards: exact match of the answer, alone or with what the transcript's structure is worth.

`rule: em` pays 1 for a right answer, `format_score` for a wrong one, 0 for none. `rule: structure` is the reward of
upstream's v0.3 scripts; with s, f and r for `structure_score`, `invalid_score` and `retrieval_score`:

| answer           | structure valid                        | not valid      |
|------------------|----------------------------------------|----------------|
| right            | 1                                      | 1 - s          |
| wrong            | s, + r if a gold answer was retrieved  | f              |
| none             | s, + r if a gold answer was retrieved  | 0              |

The structure is valid when the transcript is one `<think>`, then any number of `<search>`, `<information>`, `<think>`,
then one `<answer>`, with nothing but white space between them. Only the model's own turns are read for an answer.

`score_prompt` reads as upstream does: answers are looked for in all that stands there, the instructions of the prompt
and the notice to a turn without an action included. A transcript without an answer then answers "Beijing", the second
of the two in the instructions, or "and", behind a notice.

Sources: `qa_em.py` and `qa_em_format.py` of PeterGriffinJin/Search-R1; paper arXiv 2503.09516 §3.4.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.tags import enclosed
from mmsearch_trl.rewards.checks import check_choice, check_range
from mmsearch_trl.rewards.matching import RewardMode, is_right, normalize_answer
from mmsearch_trl.rewards.rule import Message, MessageRule, assistant_turns
from mmsearch_trl.rewards.sources import RewardSources


RewardRule = Literal["em", "structure"]

_TEXT = r"(?:(?!</?(?:think|search|information|answer)>).)*"
_VALID = re.compile(
    rf"\s*<think>{_TEXT}</think>\s*"
    rf"(?:<search>{_TEXT}</search>\s*<information>{_TEXT}</information>\s*<think>{_TEXT}</think>\s*)*"
    rf"<answer>{_TEXT}</answer>\s*",
    re.DOTALL,
)

_PROMPT_ANSWERS = ("and", "Beijing")
"""What stands between answer tags in the instructions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchR1RewardConfig(RewardSources, MessageRule):
    """The `reward:` section of a recipe with `protocol: search_r1`.

    Raises:
        UserError: A value is out of range or a mode is unknown.
    """

    rule: RewardRule = field(
        default="em", metadata={"help": "em: the answer alone. structure: also the form, as upstream's v0.3."}
    )
    reward_mode: RewardMode = field(
        default="EM",
        metadata={"help": "EM: the answer equals a gold one. SubEM: it contains one. Both after normalisation."},
    )
    format_score: float = field(default=0.0, metadata={"help": "rule em: reward of a wrong answer. [0, 1]"})
    structure_score: float = field(
        default=0.2,
        metadata={
            "help": "rule structure: reward of a valid structure without a right answer, and what a right one "
            "loses without it. [0, 1]"
        },
    )
    invalid_score: float = field(
        default=0.1, metadata={"help": "rule structure: reward of a wrong answer in no valid structure. [0, 1]"}
    )
    retrieval_score: float = field(
        default=0.0,
        metadata={
            "help": "rule structure: added to a valid structure without a right answer, if the results held a "
            "gold answer. [0, 1]"
        },
    )
    score_prompt: bool = field(
        default=False,
        metadata={
            "help": 'As upstream: look for answers in instructions and notices too, so that no answer is "Beijing".'
        },
    )

    def __post_init__(self) -> None:
        RewardSources.__post_init__(self)
        check_choice("rule", self.rule, get_args(RewardRule))
        check_choice("reward_mode", self.reward_mode, get_args(RewardMode))
        for name in ("format_score", "structure_score", "invalid_score", "retrieval_score"):
            check_range(name, getattr(self, name), 0, 1)

    @property
    def scored_by(self) -> MessageRule:
        return self

    @property
    def name(self) -> str:
        return "search_r1"

    def score_messages(self, messages: Sequence[Message], answers: Sequence[str], step: int | None) -> RewardParts:
        """Score a transcript; `step` changes nothing."""
        texts = [message["content"] for message in messages] if self.score_prompt else assistant_turns(messages)
        answer = extract_answer(texts, prompt=self.score_prompt)
        transcript = "".join(message["content"] for message in messages)
        right = is_right(answer, answers, self.reward_mode)
        valid = structure_valid(transcript)
        searches = sum(next(enclosed(turn, "search"), None) is not None for turn in assistant_turns(messages))
        reward = self._reward(answer, right, valid, transcript, answers)
        return RewardParts(reward, float(right), float(valid), searches, answer)

    def _reward(self, answer: str | None, right: bool, valid: bool, transcript: str, answers: Sequence[str]) -> float:
        if self.rule == "em":
            return 1.0 if right else self.format_score if answer is not None else 0.0
        if right:
            return 1.0 if valid else 1.0 - self.structure_score
        if valid:
            return self.structure_score + self.retrieval_score * retrieved(transcript, answers)
        return 0.0 if answer is None else self.invalid_score


def extract_answer(turns: Sequence[str], *, prompt: bool = False) -> str | None:
    """The stripped content of the last `<answer>...</answer>`, or None without one.

    Args:
        turns: The texts to look in.
        prompt: Take the instructions' answers for the first ones, as upstream does.
    """
    answers = [found for turn in turns for found in enclosed(turn, "answer")]
    answers = [*_PROMPT_ANSWERS, *answers] if prompt else answers
    return answers[-1].strip() if answers else None


def structure_valid(transcript: str) -> bool:
    """Whether turns and results, joined, have the form that the module describes."""
    return _VALID.fullmatch(transcript) is not None


def retrieved(transcript: str, answers: Sequence[str]) -> bool:
    """Whether a block of results holds a gold answer, both normalised."""
    blocks = [normalize_answer(block) for block in enclosed(transcript, "information")]
    return any(normalize_answer(answer) in block for block in blocks for answer in answers)
