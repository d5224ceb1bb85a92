"""Numbers over finished trajectories: how often right, how often searched, and at what cost.

All counts come from typed observations and their failures, never from the wording of tool text. A search counts once
it was put to a tool, whether or not the tool could answer; one refused by a limit has no observation and does not.
Every group's ratios are over that group's own trajectories.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.statistics import wilson_interval
from mmsearch_trl.core.trajectory import StopReason, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """One group of `n` trajectories. Ratios and rates are in [0, 1].

    Attributes:
        accuracy: Mean accuracy, no penalty in it.
        accuracy_stderr: Its standard error, sqrt(p (1 - p) / n) for right or wrong answers.
        accuracy_low: Lower end of its 95 % Wilson interval, which stays honest where the standard error is 0.
        accuracy_high: Upper end of the same.
        reward: Mean reward.
        format: Share in valid form.
        search_ratio: Share with at least one search.
        image_ratio: Share with at least one image search.
        text_ratio: Share with at least one text search.
        mixed_ratio: Share with both.
        search_rate: Searches / (`max_searches` * n), the SR of the paper; a system that always searches has 1.
        image_failure_ratio: Failed image searches / image searches; 0 without any.
        text_failure_ratio: The same for text.
        rollout_failure_ratio: Share that could not be finished.
        turns: Mean number of assistant turns.
        response_length: Mean number of tokens the model wrote; replies are not in it.
    """

    n: int
    accuracy: float
    accuracy_stderr: float
    accuracy_low: float
    accuracy_high: float
    reward: float
    format: float
    search_ratio: float
    image_ratio: float
    text_ratio: float
    mixed_ratio: float
    search_rate: float
    image_failure_ratio: float
    text_failure_ratio: float
    rollout_failure_ratio: float
    turns: float
    response_length: float

    def as_dict(self) -> dict[str, float]:
        """Every field by its name, for logging and JSON."""
        return asdict(self)

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], prefix: str) -> "GroupSummary":
        """Read back what was logged with `prefix` before each field's name."""
        return cls(**{item.name: metrics[f"{prefix}{item.name}"] for item in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """All trajectories, and the same by data source, by category, and by whether they searched; no group is empty."""

    overall: GroupSummary
    by_source: Mapping[str, GroupSummary] = field(default_factory=dict)
    by_category: Mapping[str, GroupSummary] = field(default_factory=dict)
    by_search: Mapping[str, GroupSummary] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """Flat: `accuracy`, `source/<name>/accuracy`, `category/<name>/...`, `searched/...`, `unsearched/...`."""
        flat = self.overall.as_dict()
        prefixed = [
            *((f"source/{name}/", group) for name, group in self.by_source.items()),
            *((f"category/{name}/", group) for name, group in self.by_category.items()),
            *((f"{name}/", group) for name, group in self.by_search.items()),
        ]
        return flat | {prefix + key: value for prefix, group in prefixed for key, value in group.as_dict().items()}


@dataclass(frozen=True, slots=True)
class _Row:
    trajectory: Trajectory
    parts: RewardParts
    image_searches: tuple[Observation, ...]
    text_searches: tuple[Observation, ...]

    @property
    def searched(self) -> bool:
        return bool(self.image_searches or self.text_searches)


def summarize(
    trajectories: Sequence[Trajectory], parts: Sequence[RewardParts], *, max_searches: int = 2
) -> EvaluationSummary:
    """Summarise an evaluation.

    Args:
        trajectories: At least one.
        parts: The score of each, in the same order.
        max_searches: Searches a trajectory may execute, one fewer than its rounds: the paper's SR is relative to it.

    Raises:
        UserError: There is no trajectory, the lengths differ, or `max_searches` is below 1.
    """
    if not trajectories:
        raise UserError("no trajectory to summarise")
    if max_searches < 1:
        raise UserError(f"max_searches must be at least 1, got {max_searches}")
    rows = _rows(trajectories, parts)

    def by(key: Callable[[_Row], str | None]) -> dict[str, GroupSummary]:
        return {name: _group(members, max_searches) for name, members in _split(rows, key).items()}

    return EvaluationSummary(
        overall=_group(rows, max_searches),
        by_source=by(lambda row: row.trajectory.task.data_source or None),
        by_category=by(lambda row: row.trajectory.task.category),
        by_search=by(lambda row: "searched" if row.searched else "unsearched"),
    )


def _rows(trajectories: Sequence[Trajectory], parts: Sequence[RewardParts]) -> list[_Row]:
    if len(trajectories) != len(parts):
        raise UserError(f"{len(trajectories)} trajectories but {len(parts)} scores")
    return [
        _Row(trajectory, part, _of(trajectory, ActionKind.IMAGE_SEARCH), _of(trajectory, ActionKind.TEXT_SEARCH))
        for trajectory, part in zip(trajectories, parts, strict=True)
    ]


def _of(trajectory: Trajectory, tool: str) -> tuple[Observation, ...]:
    return tuple(observation for observation in trajectory.observations if observation.tool == tool)


def _split(rows: Iterable[_Row], key: Callable[[_Row], str | None]) -> dict[str, list[_Row]]:
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        name = key(row)
        if name is not None:
            groups.setdefault(name, []).append(row)
    return dict(sorted(groups.items()))


def _group(rows: Sequence[_Row], max_searches: int) -> GroupSummary:
    accuracies = [row.parts.accuracy for row in rows]
    accuracy = _mean(accuracies)
    low, high = wilson_interval(accuracy, len(rows))
    image = [observation for row in rows for observation in row.image_searches]
    text = [observation for row in rows for observation in row.text_searches]
    return GroupSummary(
        n=len(rows),
        accuracy=accuracy,
        accuracy_stderr=math.sqrt(_mean((value - accuracy) ** 2 for value in accuracies) / len(rows)),
        accuracy_low=low,
        accuracy_high=high,
        reward=_mean(0.0 if math.isnan(row.parts.reward) else row.parts.reward for row in rows),
        format=_mean(row.parts.format for row in rows),
        search_ratio=_mean(row.searched for row in rows),
        image_ratio=_mean(bool(row.image_searches) for row in rows),
        text_ratio=_mean(bool(row.text_searches) for row in rows),
        mixed_ratio=_mean(bool(row.image_searches and row.text_searches) for row in rows),
        search_rate=(len(image) + len(text)) / (max_searches * len(rows)),
        image_failure_ratio=_failure_ratio(image),
        text_failure_ratio=_failure_ratio(text),
        rollout_failure_ratio=_mean(row.trajectory.stop is StopReason.FAILED for row in rows),
        turns=_mean(len(row.trajectory.turns) for row in rows),
        response_length=_mean(_response_length(row.trajectory) for row in rows),
    )


def _response_length(trajectory: Trajectory) -> int:
    return sum(len(turn.token_ids) for turn in trajectory.turns)


def _failure_ratio(observations: Sequence[Observation]) -> float:
    return _mean(observation.failure is not None for observation in observations) if observations else 0.0


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
