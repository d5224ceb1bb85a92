"""What the searches of a batch came to, over all ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import reduce
from operator import add
from typing import Any

import torch

from mmsearch_trl.core.action import SEARCHES, ActionKind
from mmsearch_trl.core.observation import Failure, FailureKind
from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.search.calls.record import CallRecord
from mmsearch_trl.search.calls.totals import SearchTotals, totals_of


_KINDS = tuple(FailureKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchCalls:
    """Calls of all ranks.

    Attributes:
        by_tool: Totals of every tool.
        failures: By kind; those of the policy among them.
        latency_p95: Seconds, of the slowest rank.
    """

    by_tool: Mapping[ActionKind, SearchTotals]
    failures: Mapping[FailureKind, int]
    latency_p95: float

    @classmethod
    def gather(cls, records: Sequence[CallRecord], ranks: Ranks) -> "SearchCalls":
        """Sum this rank's records with those of the others: a collective call."""
        by_tool = gather_totals(totals_of(records), ranks)
        failed = [sum(record.failure is kind for record in records) for kind in _KINDS]
        seconds = torch.tensor([record.seconds for record in records] or [0.0]).quantile(0.95)
        failures = {kind: int(count) for kind, count in zip(_KINDS, ranks.sum(failed), strict=True) if count}
        return cls(by_tool=by_tool, failures=failures, latency_p95=ranks.max(float(seconds)))

    @property
    def total(self) -> SearchTotals:
        return reduce(add, self.by_tool.values())

    def metrics(self) -> dict[str, float]:
        """Under the names of the log; rates are shares of all calls, or of all calls of a tool."""
        total = self.total
        metrics: dict[str, float] = {
            f"search/failure_rate/{kind.value}": Ratio(count, total.calls) for kind, count in self.failures.items()
        }
        metrics |= {
            "search/tries": float(total.tries),
            "search/paid_calls": float(total.paid),
            "search/failure_rate": Ratio(sum(self.failures.values()), total.calls),
            "search/latency_p95": self.latency_p95,
        }
        metrics |= _costs("search", total)
        for tool, totals in self.by_tool.items():
            metrics |= _costs(f"search/{tool.removesuffix('_search')}", totals)
        return metrics

    @property
    def infrastructure_failures(self) -> dict[FailureKind, int]:
        return {kind: count for kind, count in self.failures.items() if Failure(kind, "").infrastructure}


def gather_totals(totals: Mapping[ActionKind, SearchTotals], ranks: Ranks) -> dict[ActionKind, SearchTotals]:
    """Sum every tool's totals of this rank with those of the others: a collective call."""
    summed = iter(ranks.sum([number for tool in SEARCHES for number in astuple(totals[tool])]))
    names = [each.name for each in fields(SearchTotals)]
    rows: list[dict[str, Any]] = [
        {name: next(summed) if name == "price" else int(next(summed)) for name in names} for _ in SEARCHES
    ]
    return {tool: SearchTotals(**row) for tool, row in zip(SEARCHES, rows, strict=True)}


def _costs(name: str, total: SearchTotals) -> dict[str, float]:
    return {
        f"{name}/calls": float(total.calls),
        f"{name}/cache_hit": Ratio(total.cached, total.calls),
        f"{name}/coalesced": Ratio(total.coalesced, total.calls),
        f"{name}/bytes": float(total.bytes),
        f"{name}/price": total.price,
    }
