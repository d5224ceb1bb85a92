"""Numbers over finished trajectories: how often right, how often searched, and at what cost.

No trajectory is kept: each is reduced to its measures, and these to exact sums, so that a summary depends neither on
the order of the trajectories nor on their number.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from mmsearch_trl.core.statistics import wilson_interval
from mmsearch_trl.evaluation.measures import Measures
from mmsearch_trl.evaluation.summary import EvaluationSummary, GroupSummary


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
