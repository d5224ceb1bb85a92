"""The MMSearch-R1 reward: pay for a right answer and for clean form, and take a little off when it needed a search.

    reward = (1 - format_penalty) * accuracy * (1 - search_penalty if it searched) + format_penalty * format

With the published numbers: 1.0 right without search, 0.91 right with a search, 0.9 and 0.81 the same in bad form, 0.1
wrong in good form, 0 otherwise. A wrong answer is never charged for its searches, so trying to search costs nothing
where it is needed. The April-2025 article subtracts instead (`formula="subtractive"`) and charges wrong answers too.

Only the model's own turns are read. What a tool returned can neither be scored as an answer nor counted as a search.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from mmsearch_trl.rewards import format as form
from mmsearch_trl.rewards.matching import accepted_answers, exact_match, substring_match


RewardMode = Literal["EM", "SubEM"]
FormatRule = Literal["any_rounds", "three_rounds"]
Formula = Literal["multiplicative", "subtractive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """The `reward:` section of a recipe.

    Raises:
        ValueError: A value is out of range or a mode is unknown.
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

    def __post_init__(self) -> None:
        _check_range("search_penalty", self.search_penalty, -1, 1)
        _check_range("format_penalty", self.format_penalty, 0, 1)
        _check_range("search_penalty_warmup_steps", self.search_penalty_warmup_steps, 0, math.inf)
        _check_choice("reward_mode", self.reward_mode, get_args(RewardMode))
        _check_choice("format_rule", self.format_rule, get_args(FormatRule))
        _check_choice("formula", self.formula, get_args(Formula))
        if self.formula == "subtractive" and self.use_search_count_penalty:
            raise ValueError("reward.use_search_count_penalty needs formula: multiplicative; subtractive charges once")

    def search_penalty_at(self, step: int | None) -> float:
        """The penalty after `step` finished optimizer steps; None (no training under way) gives the full one."""
        if step is None or self.search_penalty_warmup_steps == 0:
            return self.search_penalty
        progress = min(step / self.search_penalty_warmup_steps, 1.0)
        return self.search_penalty * (2 * progress - 1)


@dataclass(frozen=True, slots=True)
class RewardParts:
    """A score and what it is made of.

    Attributes:
        reward: What the policy is trained on.
        accuracy: 1.0 when the answer is right, else 0.0; no penalty in it.
        format: 1.0 when the form is valid, else 0.0.
        searches: Turns that asked for a search, executed or not.
        answer: The extracted answer, or None when the last turn has none.
    """

    reward: float
    accuracy: float
    format: float
    searches: int
    answer: str | None


class TrainerState(Protocol):
    """The one thing that is read of `transformers.TrainerState`."""

    global_step: int


Completion = str | Sequence[Mapping[str, Any]]
"""A conversation's messages, or a single assistant turn."""


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
    accuracy = _accuracy(answer, answers, options.reward_mode)
    valid = form.any_rounds_valid if options.format_rule == "any_rounds" else form.three_rounds_valid
    form_score = float(valid(responses))
    searches = form.count_searches(responses)
    charged = searches if options.use_search_count_penalty else min(searches, 1)
    reward = _weigh(accuracy * (1 - penalty) ** charged, form_score, options)
    return RewardParts(reward, accuracy, form_score, searches, answer)


def _subtractive(
    responses: Sequence[str], answers: Sequence[str], options: RewardConfig, penalty: float
) -> RewardParts:
    transcript = "".join(responses)
    answer = form.extract_answer(transcript)
    accuracy = _accuracy(answer, answers, options.reward_mode)
    form_score = float(form.single_search_valid(transcript))
    reward = _weigh(accuracy - penalty * form.asks_search(transcript), form_score, options)
    return RewardParts(reward, accuracy, form_score, form.count_searches(responses), answer)


def _accuracy(answer: str | None, answers: Sequence[str], mode: RewardMode) -> float:
    matches = exact_match if mode == "EM" else substring_match
    return float(answer is not None and matches(answer, answers))


def _weigh(answer_score: float, form_score: float, options: RewardConfig) -> float:
    return (1 - options.format_penalty) * answer_score + options.format_penalty * form_score


class MMSearchReward:
    """`score` as a TRL reward function; dataset column `answers` holds each row's accepted answers.

    Each trajectory's parts go to the completion table (`accuracy`, `format`, `searches`). It also logs their means
    `reward/accuracy`, `format/valid` and `reward/searches`, and the penalty in force, `reward/search_penalty`.
    """

    def __init__(self, config: RewardConfig | None = None) -> None:
        self.config = config or RewardConfig()
        self.__name__ = "mmsearch"  # TRL names the metric `rewards/mmsearch/mean` after it

    def __call__(
        self,
        completions: Sequence[Completion],
        answers: Sequence[object] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[float]], None] | None = None,
        trainer_state: TrainerState | None = None,
        **columns: Any,
    ) -> list[float]:
        """Reward each completion, `(n,)`; see `parts` for arguments and errors."""
        parts = self.parts(completions, answers, trainer_state, **columns)
        if log_metric is not None and parts:
            log_metric("reward/accuracy", sum(part.accuracy for part in parts) / len(parts))
            log_metric("format/valid", sum(part.format for part in parts) / len(parts))
            log_metric("reward/searches", sum(part.searches for part in parts) / len(parts))
            log_metric("reward/search_penalty", self.config.search_penalty_at(_step(trainer_state)))
        if log_extra is not None:
            log_extra("accuracy", [part.accuracy for part in parts])
            log_extra("format", [part.format for part in parts])
            log_extra("searches", [float(part.searches) for part in parts])
        return [part.reward for part in parts]

    def parts(
        self,
        completions: Sequence[Completion],
        answers: Sequence[object] | None,
        trainer_state: TrainerState | None = None,
        **columns: Any,
    ) -> list[RewardParts]:
        """Score each completion in full, `(n,)`.

        Args:
            completions: Message lists, of which only assistant messages are read, or single turns as strings.
            answers: Accepted answers per row, one string or several.
            columns: Other dataset columns; of these, `candidate_answers` adds accepted answers, and `id` or `data_id`
                names a row in errors.

        Raises:
            ValueError: A row has no accepted answer, or the columns differ in length.
        """
        if answers is None:
            raise ValueError("the reward needs the dataset column 'answers' (accepted answers per row); it is missing")
        candidates = columns.get("candidate_answers") or [None] * len(completions)
        step = _step(trainer_state)
        results = []
        for row, (completion, gold, more) in enumerate(zip(completions, answers, candidates, strict=True)):
            accepted = accepted_answers(gold, more)
            if not accepted:
                raise ValueError(
                    f"{_row_name(row, columns)} has no accepted answer: 'answers' is {gold!r}; fill it or drop the row"
                )
            results.append(score(_assistant_turns(completion), accepted, self.config, step=step))
        return results


def _assistant_turns(completion: Completion) -> list[str]:
    if isinstance(completion, str):
        return [completion]
    return [_text(message["content"]) for message in completion if message["role"] == "assistant"]


def _text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block["text"] for block in content if block["type"] == "text")


def _step(trainer_state: TrainerState | None) -> int | None:
    return None if trainer_state is None else trainer_state.global_step


def _row_name(row: int, columns: Mapping[str, Any]) -> str:
    ids = columns.get("id") or columns.get("data_id")
    return f"row {ids[row]!r}" if ids else f"row {row} of the batch"


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # A number in a YAML file can arrive as text (`1e-1` has no dot), which would fail far from here.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"reward.{name} must be a number from {low} to {high}, got {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"reward.{name} must be one of {', '.join(choices)}; got {value!r}")
