"""What the searches of a batch came to, over all ranks: metrics, and whether the run may go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import torch

from mmsearch_trl.core.action import SEARCHES, ActionKind
from mmsearch_trl.core.observation import Failure, FailureKind
from mmsearch_trl.search.calls.record import CallRecord
from mmsearch_trl.search.calls.totals import SearchTotals, totals_of


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

logger = logging.getLogger(__name__)

Gather = Callable[[torch.Tensor], torch.Tensor]
_KINDS = tuple(FailureKind)
_MICRO = 1_000_000
"""Dollars and seconds travel as whole millionths beside the counts: bytes would not be exact as floats."""


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
    def gather(cls, records: Sequence[CallRecord], gather: Gather, device: torch.device) -> SearchCalls:
        """Sum this rank's records with those of the others: a collective call."""
        by_tool = gather_totals(totals_of(records), gather, device)
        failed = [sum(record.failure is kind for record in records) for kind in _KINDS]
        seconds = torch.tensor([record.seconds for record in records] or [0.0]).quantile(0.95)
        rows = gather(torch.tensor([[*failed, round(float(seconds) * _MICRO)]], device=device)).cpu()
        failures = {kind: int(count) for kind, count in zip(_KINDS, rows[:, :-1].sum(dim=0), strict=True) if count}
        return cls(by_tool=by_tool, failures=failures, latency_p95=float(rows[:, -1].max()) / _MICRO)

    @property
    def total(self) -> SearchTotals:
        return reduce(add, self.by_tool.values())

    def metrics(self) -> dict[str, float]:
        """Under the names of the log; rates are shares of all calls, or of all calls of a tool."""
        total = self.total
        calls = max(total.calls, 1)
        metrics = {f"search/failure_rate/{kind.value}": count / calls for kind, count in self.failures.items()}
        metrics |= {
            "search/tries": float(total.tries),
            "search/paid_calls": float(total.paid),
            "search/failure_rate": sum(self.failures.values()) / calls,
            "search/latency_p95": self.latency_p95,
        }
        metrics |= _costs("search", total)
        for tool, totals in self.by_tool.items():
            metrics |= _costs(f"search/{tool.removesuffix('_search')}", totals)
        return metrics

    @property
    def infrastructure_failures(self) -> dict[FailureKind, int]:
        return {kind: count for kind, count in self.failures.items() if Failure(kind, "").infrastructure}


def gather_totals(
    totals: Mapping[ActionKind, SearchTotals], gather: Gather, device: torch.device
) -> dict[ActionKind, SearchTotals]:
    """Sum every tool's totals of this rank with those of the others: a collective call."""
    rows = []
    for tool in SEARCHES:
        *counts, price = astuple(totals[tool])
        rows.append([*counts, round(price * _MICRO)])
    summed = gather(torch.tensor([rows], device=device)).cpu().sum(dim=0).tolist()
    names = [each.name for each in fields(SearchTotals)]
    sums = [dict(zip(names, row, strict=True)) for row in summed]
    return {
        tool: SearchTotals(**row | {"price": row["price"] / _MICRO}) for tool, row in zip(SEARCHES, sums, strict=True)
    }


def _costs(name: str, total: SearchTotals) -> dict[str, float]:
    calls = max(total.calls, 1)
    return {
        f"{name}/calls": float(total.calls),
        f"{name}/cache_hit": total.cached / calls,
        f"{name}/coalesced": total.coalesced / calls,
        f"{name}/bytes": float(total.bytes),
        f"{name}/price": total.price,
    }


def end_if_search_is_gone(trainer: MMSearchGRPOTrainer, calls: SearchCalls) -> None:
    """Have the trainer save and end after this step where its searches are not answered; all ranks decide alike."""
    abort_reason = trainer.failure_monitor.abort_reason(calls.total.calls, calls.infrastructure_failures)
    if abort_reason is not None and trainer.ended_early is None:
        trainer.ended_early = abort_reason
        trainer.control.should_training_stop = trainer.control.should_save = True
        logger.error("The run ends after this step, and is saved: %s.", abort_reason)
