"""Numbers over finished trajectories: how often right, how often searched, and at what cost.

All counts come from typed observations and their failures, never from the wording of tool text. A search counts once
it was put to a tool, whether or not the tool could answer; one refused by a limit, an image search without an image
and a text search without words do not.
Every group's ratios are over that group's own trajectories.

No trajectory is kept: each is reduced to its measures, and these to exact sums, so that a summary depends neither on
the order of the trajectories nor on their number.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any

from mmsearch_trl.core.action import SEARCHES, ActionKind
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.statistics import wilson_interval
from mmsearch_trl.core.trajectory import StopReason, Trajectory


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What a summary takes of one trajectory.

    Attributes:
        reward: 0 where nothing was scored; of an aborted rollout `accuracy` and `format` are 0, too.
        image_searches: Put to the tool; `image_failures` of them failed. The same for text.
        failed: The rollout could not be finished.
        response_length: Tokens the model wrote.
        tools: Calls of each other tool, and how many of them failed.
    """

    data_source: str
    category: str | None
    accuracy: float
    reward: float
    format: float
    image_searches: int
    image_failures: int
    text_searches: int
    text_failures: int
    failed: bool
    turns: int
    response_length: int
    tools: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, trajectory: Trajectory, parts: RewardParts) -> "Measures":
        calls: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        of_tools = (each for each in trajectory.observations if each.tool not in SEARCHES)
        for observation in (*trajectory.searches, *of_tools):
            calls[observation.tool] += 1
            failures[observation.tool] += observation.failure is not None
        image, text = ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH
        unscored = trajectory.aborted and math.isnan(parts.accuracy)
        return cls(
            data_source=trajectory.task.data_source,
            category=trajectory.task.category,
            accuracy=0.0 if unscored else parts.accuracy,
            reward=0.0 if math.isnan(parts.reward) else parts.reward,
            format=0.0 if unscored else parts.format,
            image_searches=calls[image],
            image_failures=failures[image],
            text_searches=calls[text],
            text_failures=failures[text],
            failed=trajectory.stop is StopReason.FAILED,
            turns=len(trajectory.turns),
            response_length=sum(len(turn.token_ids) for turn in trajectory.turns),
            tools={tool: [calls[tool], failures[tool]] for tool in calls if tool not in SEARCHES},
        )

    @property
    def searched(self) -> bool:
        return bool(self.image_searches or self.text_searches)


class Summarizer:
    """Takes trajectories one by one and summarises them.

    Args:
        max_searches: Searches a trajectory may execute, one fewer than its rounds: the paper's SR is relative to it.
        tools: Names of the tools besides the searches; None where nothing could be called.

    Raises:
        ValueError: `max_searches` is below 1.
    """

    def __init__(self, max_searches: int = 2, tools: Sequence[str] | None = ()) -> None:
        if max_searches < 1:
            raise ValueError(f"max_searches must be at least 1, got {max_searches}")
        self._max_searches = max_searches
        self._tools = tools
        self._overall = _Group()
        self._by_source: dict[str, _Group] = {}
        self._by_category: dict[str, _Group] = {}
        self._by_search: dict[str, _Group] = {}

    def add(self, measures: Measures) -> None:
        self._overall.add(measures)
        if measures.data_source:
            self._by_source.setdefault(measures.data_source, _Group()).add(measures)
        if measures.category is not None:
            self._by_category.setdefault(measures.category, _Group()).add(measures)
        if self._tools is not None:
            self._by_search.setdefault("searched" if measures.searched else "unsearched", _Group()).add(measures)

    def summary(self) -> EvaluationSummary:
        """
        Raises:
            ValueError: nothing was added.
        """
        if not self._overall.n:
            raise ValueError("no trajectory to summarise")

        def summaries(groups: Mapping[str, _Group]) -> dict[str, GroupSummary]:
            return {name: groups[name].summary(self._max_searches, self._tools) for name in sorted(groups)}

        return EvaluationSummary(
            overall=self._overall.summary(self._max_searches, self._tools),
            by_source=summaries(self._by_source),
            by_category=summaries(self._by_category),
            by_search=None if self._tools is None else summaries(self._by_search),
        )


class _Group:
    """The sums of one group."""

    def __init__(self) -> None:
        self.n = 0
        self._counts: Counter[str] = Counter()
        self._tools: Counter[tuple[str, str]] = Counter()
        # The spread about the mean is known when the mean is: so values are counted, of which a rule gives two.
        self._accuracies: Counter[float] = Counter()
        self._reward = _Sum()
        self._format = _Sum()

    def add(self, measures: Measures) -> None:
        self.n += 1
        self._accuracies[math.nan if math.isnan(measures.accuracy) else measures.accuracy] += 1
        self._reward.add(measures.reward)
        self._format.add(measures.format)
        image, text = measures.image_searches, measures.text_searches
        self._counts.update(
            searched=measures.searched,
            image=image > 0,
            text=text > 0,
            mixed=image > 0 and text > 0,
            image_searches=image,
            text_searches=text,
            image_failures=measures.image_failures,
            text_failures=measures.text_failures,
            failed=measures.failed,
            turns=measures.turns,
            response_length=measures.response_length,
        )
        for tool, (calls, failures) in measures.tools.items():
            self._tools.update({(tool, "used"): calls > 0, (tool, "calls"): calls, (tool, "failures"): failures})

    def summary(self, max_searches: int, tools: Sequence[str] | None) -> GroupSummary:
        n, counts = self.n, self._counts
        return GroupSummary(
            n=n,
            reward=self._reward.value / n,
            **self._answers(),
            **({} if tools is None else self._searches(max_searches)),
            rollout_failure_ratio=counts["failed"] / n,
            turns=counts["turns"] / n,
            response_length=counts["response_length"] / n,
            tools={
                name: value
                for tool in tools or ()
                for name, value in (
                    (f"{tool}/ratio", self._tools[tool, "used"] / n),
                    (f"{tool}/failure_rate", self._tools[tool, "failures"] / max(self._tools[tool, "calls"], 1)),
                )
            },
        )

    def _answers(self) -> dict[str, float]:
        n, total, squares = self.n, _Sum(), _Sum()
        for value, count in self._accuracies.items():
            total.add(value, count)
        accuracy, form = total.value / n, self._format.value / n
        judged = {} if math.isnan(form) else {"format": form}
        if math.isnan(accuracy):
            return judged
        for value, count in self._accuracies.items():
            squares.add((value - accuracy) ** 2, count)
        low, high = wilson_interval(accuracy, n)
        spread = {"accuracy_stderr": math.sqrt(squares.value / n / n), "accuracy_low": low, "accuracy_high": high}
        return {"accuracy": accuracy, **spread, **judged}

    def _searches(self, max_searches: int) -> dict[str, float]:
        n, counts = self.n, self._counts
        return {
            "search_ratio": counts["searched"] / n,
            "image_ratio": counts["image"] / n,
            "text_ratio": counts["text"] / n,
            "mixed_ratio": counts["mixed"] / n,
            "search_rate": (counts["image_searches"] + counts["text_searches"]) / (max_searches * n),
            "image_failure_ratio": counts["image_failures"] / max(counts["image_searches"], 1),
            "text_failure_ratio": counts["text_failures"] / max(counts["text_searches"], 1),
        }


class _Sum:
    """A sum without rounding, as `math.fsum` has it, of values that come one by one."""

    def __init__(self) -> None:
        self._exact = Fraction()
        self._special = 0.0
        """The sum of infinities and NaN."""

    def add(self, value: float, count: int = 1) -> None:
        if math.isfinite(value):
            self._exact += Fraction(value) * count
        else:
            self._special += value

    @property
    def value(self) -> float:
        return float(self._exact) if self._special == 0.0 else self._special
