"""A scoring rule as a TRL reward function: rows in, scores and their parts out."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import getitem
from typing import Any, Protocol

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.rewards.answers import accepted_answers
from mmsearch_trl.rewards.rule import Message, Rollout, Rule


Completion = str | Sequence[Message]
"""A conversation's messages, or a single assistant turn."""


class TrainerState(Protocol):
    """The one thing that is read of `transformers.TrainerState`."""

    global_step: int


class RuleReward:
    """A rule as a TRL reward function; dataset column `answers` holds each row's accepted answers.

    Each trajectory's parts go to the completion table (`accuracy`, `format`, `searches`). It also logs their means
    `reward/accuracy`, `format/valid` and `reward/searches`, and the rule's own metrics. Of searches nothing is said
    where the rule counts none, and of answers whose judging was given up (`reward/given_up`) where none can be.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.__name__ = rule.name

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
        searches = [float(part.searches) for part in parts if part.searches is not None]
        given_up = [float(part.given_up) for part in parts if part.given_up is not None]
        if log_metric is not None and parts:
            log_metric("reward/accuracy", sum(part.accuracy for part in parts) / len(parts))
            log_metric("format/valid", sum(part.format for part in parts) / len(parts))
            if searches:
                log_metric("reward/searches", sum(searches) / len(searches))
            if given_up:
                log_metric("reward/given_up", sum(given_up) / len(given_up))
            for name, value in self.rule.metrics_at(_step(trainer_state)).items():
                log_metric(name, value)
        if log_extra is not None:
            log_extra("accuracy", [part.accuracy for part in parts])
            log_extra("format", [part.format for part in parts])
            if searches:
                log_extra("searches", searches)
        return [part.reward for part in parts]

    def close(self) -> None:
        """End what the rule has started."""
        self.rule.close()

    def parts(
        self,
        completions: Sequence[Completion],
        answers: Sequence[object] | None,
        trainer_state: TrainerState | None = None,
        **columns: Any,
    ) -> list[RewardParts]:
        """Score each completion in full, `(n,)`.

        Args:
            completions: Message lists, or single assistant turns as strings.
            answers: Accepted answers per row, in any shape of `rewards/answers.py`.
            columns: Other dataset columns; of these, `candidate_answers` adds accepted answers, `id` or `data_id`
                names a row in errors, `queries` holds prompts and completions as texts, and `extra` what else the row
                holds, as JSON.

        Raises:
            UserError: A row has no accepted answer though the rule needs one, or the columns differ in length.
        """
        if answers is None and self.rule.needs_answers:
            raise UserError("the reward needs the dataset column 'answers' (accepted answers per row); it is missing")
        golds = answers if answers is not None else [None] * len(completions)
        candidates = columns.get("candidate_answers") or [None] * len(completions)
        queries = columns.get("queries")
        rollouts = []
        for row, (completion, gold, more) in enumerate(zip(completions, golds, candidates, strict=True)):
            try:
                accepted = accepted_answers(gold, more, verbatim=not self.rule.compares_words)
            except UserError as error:
                raise UserError(f"{_row_name(row, columns)}: {error}") from error
            if not accepted and self.rule.needs_answers:
                raise UserError(
                    f"{_row_name(row, columns)} has no accepted answer: 'answers' is {gold!r}; fill it or drop the row"
                )
            known: dict[str, Any] = {"row": _row_name(row, columns)}
            if queries is not None:
                known["query"] = partial(getitem, queries, row)
            if (extra := columns.get("extra")) is not None:
                known["extra"] = partial(json.loads, extra[row])
            rollouts.append(Rollout(messages=_messages(completion), answers=accepted, **known))
        return self.rule.score_batch(rollouts, _step(trainer_state))


def _messages(completion: Completion) -> list[Message]:
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return [{"role": message["role"], "content": _text(message["content"])} for message in completion]


def _text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block["text"] for block in content if block["type"] == "text")


def _step(trainer_state: TrainerState | None) -> int | None:
    return None if trainer_state is None else trainer_state.global_step


def _row_name(row: int, columns: Mapping[str, Any]) -> str:
    ids = columns.get("id") or columns.get("data_id")
    return f"row {ids[row]!r}" if ids else f"row {row} of the batch"
