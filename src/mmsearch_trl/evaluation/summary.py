"""What an evaluation came to: numbers of all trajectories, and of groups of them.

Every group's ratios are over that group's own trajectories.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """One group of `n` trajectories. Ratios and rates are in [0, 1]. What has a default is None and told nowhere
    where nobody judged an answer of the group (`OF_ANSWERS`), or nothing could be searched with (`OF_SEARCHES`).

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
        tools: Of each tool besides the searches: `NAME/ratio`, the share with at least one call, and
            `NAME/failure_rate`, failed calls / calls, the policy's own mistakes among them.
    """

    n: int
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    reward: float
    format: float | None = None
    search_ratio: float | None = None
    image_ratio: float | None = None
    text_ratio: float | None = None
    mixed_ratio: float | None = None
    search_rate: float | None = None
    image_failure_ratio: float | None = None
    text_failure_ratio: float | None = None
    rollout_failure_ratio: float
    turns: float
    response_length: float
    tools: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """Every number by its name, for logging and JSON; those of tools as `tool/...`."""
        numbers = {name: number for name, number in asdict(self).items() if number is not None}
        return numbers | {f"tool/{name}": value for name, value in numbers.pop("tools").items()}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], prefix: str) -> "GroupSummary":
        """Read back what was logged with `prefix` before each name of `as_dict`."""
        numbers = {
            item.name: metrics[f"{prefix}{item.name}"]
            for item in fields(cls)
            if item.name != "tools" and (item.default is MISSING or f"{prefix}{item.name}" in metrics)
        }
        of_tools = f"{prefix}tool/"
        return cls(
            **numbers, tools={n.removeprefix(of_tools): v for n, v in metrics.items() if n.startswith(of_tools)}
        )


OF_ANSWERS = frozenset({"accuracy", "accuracy_stderr", "accuracy_low", "accuracy_high", "format"})
OF_SEARCHES = frozenset(each.name for each in fields(GroupSummary) if each.default is None) - OF_ANSWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """All trajectories, and the same by data source, by category, and, where they could, by whether they searched; no
    group is empty."""

    overall: GroupSummary
    by_source: Mapping[str, GroupSummary] = field(default_factory=dict)
    by_category: Mapping[str, GroupSummary] = field(default_factory=dict)
    by_search: Mapping[str, GroupSummary] | None = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """Flat: `accuracy`, `source/<name>/accuracy`, `category/<name>/...`, `searched/...`, `unsearched/...`."""
        flat = self.overall.as_dict()
        prefixed = [
            *((f"source/{name}/", group) for name, group in self.by_source.items()),
            *((f"category/{name}/", group) for name, group in self.by_category.items()),
            *((f"{name}/", group) for name, group in (self.by_search or {}).items()),
        ]
        return flat | {prefix + key: value for prefix, group in prefixed for key, value in group.as_dict().items()}
