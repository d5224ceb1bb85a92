"""The MMSearch-R1 reward: pay for a right answer and for clean form, and take a little off when it needed a search.

    reward = (1 - format_penalty) * accuracy * (1 - search_penalty if it searched) + format_penalty * format

With the published numbers: 1.0 right without search, 0.91 right with a search, 0.9 and 0.81 the same in bad form, 0.1
wrong in good form, 0 otherwise. A wrong answer is never charged for its searches, so trying to search costs nothing
where it is needed. The April-2025 article subtracts instead (`formula="subtractive"`) and charges wrong answers too.

Only the model's own turns are read. What a tool returned can neither be scored as an answer nor counted as a search.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.rewards import format as form
from mmsearch_trl.rewards.checks import check_choice, check_range
from mmsearch_trl.rewards.matching import RewardMode, is_right
from mmsearch_trl.rewards.rule import Message, MessageRule, assistant_turns
from mmsearch_trl.rewards.sources import RewardSources


FormatRule = Literal["any_rounds", "three_rounds"]
Formula = Literal["multiplicative", "subtractive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig(RewardSources, MessageRule):
    """The `reward:` section of a recipe.

    Raises:
        UserError: A value is out of range or a mode is unknown.
    """

    search_penalty: float = field(
        default=0.1,
        metadata={"help": "Share of a right answer's score lost by searching; negative is a bonus. [-1, 1]"},
    )
    format_penalty: float = field(
        default=0.1, metadata={"help": "Weight of the format score; the answer has the rest. [0, 1]"}
    )
    reward_mode: RewardMode = field(
        default="EM",
        metadata={"help": "EM: the answer equals a gold one. SubEM: it contains one. Both after normalisation."},
    )
    use_search_count_penalty: bool = field(
        default=False, metadata={"help": "Apply the search penalty once per search instead of once per transcript."}
    )
    search_penalty_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps over which the penalty rises linearly from -search_penalty (a bonus for "
            "searching) to +search_penalty. 0 applies it in full from the start."
        },
    )
    format_rule: FormatRule = field(
        default="any_rounds",
        metadata={
            "help": "any_rounds: any searches in any order, then an answer. three_rounds: the published rule, with at "
            "most image search, text search, answer, in this order."
        },
    )
    formula: Formula = field(
        default="multiplicative",
        metadata={
            "help": "multiplicative: the published reward. subtractive: the April-2025 article's, which takes the "
            "penalty off wrong answers as well, once, and judges form by counting tags: format_rule is not used."
        },
    )

    tools: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Names of tools besides the searches, with which a well-formed turn may end; calls cost nothing. "
            "Those of the recipe's `tools:` need not be named. format_rule three_rounds takes none."
        },
    )

    def __post_init__(self) -> None:
        RewardSources.__post_init__(self)
        check_range("search_penalty", self.search_penalty, -1, 1)
        check_range("format_penalty", self.format_penalty, 0, 1)
        check_range("search_penalty_warmup_steps", self.search_penalty_warmup_steps, 0, math.inf)
        check_choice("reward_mode", self.reward_mode, get_args(RewardMode))
        check_choice("format_rule", self.format_rule, get_args(FormatRule))
        check_choice("formula", self.formula, get_args(Formula))
        if self.formula == "subtractive" and self.use_search_count_penalty:
            raise UserError("reward.use_search_count_penalty needs formula: multiplicative; subtractive charges once")

    def search_penalty_at(self, step: int | None) -> float:
        """The penalty after `step` finished optimizer steps; None (no training under way) gives the full one."""
        if step is None or self.search_penalty_warmup_steps == 0:
            return self.search_penalty
        progress = min(step / self.search_penalty_warmup_steps, 1.0)
        return self.search_penalty * (2 * progress - 1)

    @property
    def scored_by(self) -> MessageRule:
        return self

    @property
    def name(self) -> str:
        return "mmsearch"

    def score_messages(self, messages: Sequence[Message], answers: Sequence[str], step: int | None) -> RewardParts:
        """Score the model's own turns (`score`)."""
        return score(assistant_turns(messages), answers, self, step=step)

    def metrics_at(self, step: int | None) -> dict[str, float]:
        return {"reward/search_penalty": self.search_penalty_at(step)}


def score(
    responses: Sequence[str], answers: Sequence[str], options: RewardConfig, *, step: int | None = None
) -> RewardParts:
    """Score one transcript.

    Args:
        responses: The model's own turns, in order. None at all scores 0.
        answers: Accepted answers; with none, no answer is right.
        step: Finished optimizer steps, for the penalty's warm-up; None applies the full penalty.
    """
    penalty = options.search_penalty_at(step)
    if options.formula == "subtractive":
        return _subtractive(responses, answers, options, penalty)
    answer = form.extract_answer(responses[-1]) if responses else None
    accuracy = float(is_right(answer, answers, options.reward_mode))
    any_rounds = options.format_rule == "any_rounds"
    form_score = float(
        form.any_rounds_valid(responses, options.tools) if any_rounds else form.three_rounds_valid(responses)
    )
    searches = form.count_searches(responses)
    charged = searches if options.use_search_count_penalty else min(searches, 1)
    reward = _weigh(accuracy * (1 - penalty) ** charged, form_score, options)
    return RewardParts(reward, accuracy, form_score, searches, answer)


def _subtractive(
    responses: Sequence[str], answers: Sequence[str], options: RewardConfig, penalty: float
) -> RewardParts:
    transcript = "".join(responses)
    answer = form.extract_answer(transcript)
    accuracy = float(is_right(answer, answers, options.reward_mode))
    form_score = float(form.single_search_valid(transcript))
    reward = _weigh(accuracy - penalty * form.asks_search(transcript), form_score, options)
    return RewardParts(reward, accuracy, form_score, form.count_searches(responses), answer)


def _weigh(answer_score: float, form_score: float, options: RewardConfig) -> float:
    return (1 - options.format_penalty) * answer_score + options.format_penalty * form_score
