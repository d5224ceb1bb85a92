"""What the reward functions say about this rank's trajectories.

TRL applies its reward functions in the middle of a training batch, gathers what they gave, and keeps what they log in
private lists. Rewards are wanted elsewhere, too: to filter groups, and to evaluate. So they are applied here, to any
trajectories, by this rank alone; the trainer then hands TRL the values and the logs.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

import torch
from torch import nn
from trl.data_utils import apply_chat_template

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rollout.background_loop import BackgroundLoop


Row = dict[str, Any]
_CLASSIFIED_AT_ONCE = 8
"""Chats that a reward model reads at a time."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of the trajectories of one rank.

    Attributes:
        values: `(n, functions)`, NaN where a function gave none and where the rollout was aborted.
        weights: `(functions,)`.
        columns: What functions reported of each trajectory, by name (TRL's `log_extra`); None where it was aborted.
        metrics: What they logged, by name (TRL's `log_metric`), each over the trajectories that were not aborted.
    """

    values: torch.Tensor
    weights: torch.Tensor
    columns: Mapping[str, Sequence[Any]]
    metrics: Mapping[str, Ratio]

    @property
    def totals(self) -> torch.Tensor:
        """Weighted sums, `(n,)`; NaN where nothing was scored."""
        totals = (self.values * self.weights.to(self.values)).nansum(dim=1)
        return totals.masked_fill(self.values.isnan().all(dim=1), torch.nan)

    def of(
        self, trajectories: Sequence[Trajectory], advantages: Sequence[float] | None = None
    ) -> list[ScoredTrajectory]:
        """Each trajectory with what it was paid; parts that no function reported are NaN."""
        totals = self.totals.tolist()
        accuracy, form, searches = (self.columns.get(name) for name in ("accuracy", "format", "searches"))
        return [
            ScoredTrajectory(
                trajectory=trajectory,
                parts=RewardParts(
                    totals[i],
                    _or_nan(accuracy, i),
                    _or_nan(form, i),
                    int(searches[i] or 0) if searches else None,
                    None,
                ),
                advantage=advantages[i] if advantages is not None else None,
            )
            for i, trajectory in enumerate(trajectories)
        ]


class _Queries(Sequence[str]):
    """Prompt and completion of each trajectory as one text, control tokens included, made when it is asked for."""

    def __init__(self, trajectories: Sequence[Trajectory], decode: Callable[[Sequence[int]], str]) -> None:
        self._trajectories, self._decode = trajectories, decode

    def __len__(self) -> int:
        return len(self._trajectories)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._decode(trajectory.token_ids) for trajectory in self._trajectories[number]]
        return self._decode(self._trajectories[number].token_ids)


class RewardFunctions:
    """The reward functions of a trainer: plain ones, coroutines, and reward models.

    Args:
        functions: In TRL's signature: `prompts`, `completions`, `completion_ids`, every column of the data,
            `trainer_state`, `log_extra` and `log_metric`; and `queries`, prompt and completion as one text, and
            `sampled_tokens`, how many tokens of a completion the policy wrote.
        tokenizers: Of each function that is a model.
        weights: `(functions,)`.
        chat_template_kwargs: Of the chats that reward models read.
        loop: Runs coroutines, all at once.
        decode: Makes text of token ids, control tokens included.
    """

    def __init__(
        self,
        functions: Sequence[Any],
        tokenizers: Sequence[Any],
        weights: torch.Tensor,
        chat_template_kwargs: Mapping[str, Any],
        loop: BackgroundLoop,
        decode: Callable[[Sequence[int]], str] = str,
    ) -> None:
        self.functions = functions
        self._tokenizers = tokenizers
        self._weights = weights
        self._chat_template_kwargs = chat_template_kwargs
        self._loop = loop
        self._decode = decode

    def __call__(self, rows: Sequence[Row], trajectories: Sequence[Trajectory], state: Any) -> Rewards:
        """Score trajectories of this rank; no other rank takes part.

        An aborted rollout is no evidence about the policy: functions never see it, so that no mean of theirs takes it
        for a wrong answer, and NaN keeps it out of its group's baseline.

        Args:
            rows: The row of the data of each, images left out.
            state: TRL's `trainer_state`.

        Raises:
            UserError: a function gave another number of rewards.
        """
        values = torch.full((len(rows), len(self.functions)), torch.nan)
        kept = [number for number, trajectory in enumerate(trajectories) if not trajectory.aborted]
        if not kept:
            return Rewards(values, self._weights, {}, {})
        columns: defaultdict[str, list[Any]] = defaultdict(list)
        metrics: defaultdict[str, list[float]] = defaultdict(list)
        values[kept] = self._apply([rows[i] for i in kept], [trajectories[i] for i in kept], state, columns, metrics)
        return Rewards(
            values,
            self._weights,
            {name: _spread(column, kept, len(rows)) for name, column in columns.items()},
            {name: Ratio(sum(logged) * len(kept), len(logged) * len(kept)) for name, logged in metrics.items()},
        )

    def _apply(
        self,
        rows: Sequence[Row],
        trajectories: Sequence[Trajectory],
        state: Any,
        columns: defaultdict[str, list[Any]],
        metrics: defaultdict[str, list[float]],
    ) -> torch.Tensor:
        """`(n, functions)`; what functions report and log goes to `columns` and `metrics`."""
        arguments: dict[str, Any] = {
            key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion", "completion_ids")
        }
        arguments |= {
            "prompts": [row["prompt"] for row in rows],
            "completions": [messages_of(trajectory) for trajectory in trajectories],
            "completion_ids": [trajectory.completion_ids for trajectory in trajectories],
            "sampled_tokens": [sum(trajectory.loss_mask) for trajectory in trajectories],
            "queries": _Queries(trajectories, self._decode),
            "trainer_state": state,
            "log_extra": lambda name, values: columns[name].extend(values),
            "log_metric": lambda name, value: metrics[name].append(value),
        }
        given: list[Any] = [None] * len(self.functions)
        coroutines = {}
        for number, (function, tokenizer) in enumerate(zip(self.functions, self._tokenizers, strict=True)):
            if isinstance(function, nn.Module):
                given[number] = self._by_model(function, tokenizer, arguments)
            elif iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
                coroutines[number] = function(**arguments)
            else:
                given[number] = function(**arguments)
        for number, rewards in zip(coroutines, self._loop.run(_together(coroutines.values())), strict=True):
            given[number] = rewards
        return torch.stack([_column(rewards, len(rows)) for rewards in given], dim=1)

    def scorer(self, state: Any) -> Callable[[Sequence[Row], Sequence[Trajectory]], list[ScoredTrajectory]]:
        """These functions as an evaluation takes them: rows and trajectories in, scored trajectories out."""
        return lambda rows, trajectories: self(rows, trajectories, state).of(trajectories)

    def _by_model(self, model: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> list[float]:
        """The first logit of a sequence classifier on the whole chat, as TRL takes it."""
        chats = [
            {"messages": prompt + completion}
            for prompt, completion in zip(arguments["prompts"], arguments["completions"], strict=True)
        ]
        texts = [apply_chat_template(chat, tokenizer, **self._chat_template_kwargs)["text"] for chat in chats]
        rewards: list[float] = []
        for begin in range(0, len(texts), _CLASSIFIED_AT_ONCE):
            inputs = tokenizer(
                text=texts[begin : begin + _CLASSIFIED_AT_ONCE],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            ).to(model.device)
            with torch.inference_mode():
                rewards += model(**inputs).logits[:, 0].tolist()
        return rewards

    def close(self) -> None:
        """End what rules have started."""
        for function in self.functions:
            if isinstance(function, RuleReward):
                function.close()


def messages_of(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The completion as TRL shows it; an empty turn stands for a rollout that was aborted before its first."""
    return trajectory.messages or [{"role": "assistant", "content": ""}]


def _spread(values: Sequence[Any], places: Sequence[int], count: int) -> list[Any]:
    """The values at their places in a list of that length; None elsewhere."""
    spread: list[Any] = [None] * count
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return spread


def _or_nan(column: Sequence[float | None] | None, number: int) -> float:
    value = column[number] if column else None
    return math.nan if value is None else value


async def _together(coroutines: Any) -> list[Any]:
    return await asyncio.gather(*coroutines)


def _column(rewards: Sequence[float | None], count: int) -> torch.Tensor:
    if len(rewards) != count:
        raise UserError(f"a reward function gave {len(rewards)} rewards for {count} completions")
    return torch.tensor([torch.nan if reward is None else reward for reward in rewards], dtype=torch.float32)
