"""What the searches of a batch came to, over all ranks: metrics, and whether the run may go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmsearch_trl.search.types import CallRecord, Failure, FailureKind


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

logger = logging.getLogger(__name__)

_KINDS = tuple(FailureKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchCalls:
    """Calls of all ranks.

    Attributes:
        tries: How often backends were asked.
        paid: How many of the tries cost something.
        failures: By kind; those of the policy among them.
        latency_p95: Seconds, of the slowest rank.
    """

    calls: int
    cached: int
    coalesced: int
    tries: int
    paid: int
    failures: dict[FailureKind, int]
    latency_p95: float

    @classmethod
    def gather(
        cls, records: Sequence[CallRecord], gather: Callable[[torch.Tensor], torch.Tensor], device: torch.device
    ) -> SearchCalls:
        """Sum this rank's records with those of the others: a collective call."""
        counts = [
            len(records),
            sum(record.cached for record in records),
            sum(record.coalesced for record in records),
            sum(record.tries for record in records),
            sum(record.tries for record in records if record.paid),
            *(sum(record.failure is kind for record in records) for kind in _KINDS),
        ]
        seconds = torch.tensor([record.seconds for record in records] or [0.0])
        row = torch.tensor([*map(float, counts), float(seconds.quantile(0.95))], device=device)
        rows = gather(row.unsqueeze(0)).cpu()
        calls, cached, coalesced, tries, paid, *failed = (int(total) for total in rows[:, :-1].sum(dim=0))
        failures = {kind: count for kind, count in zip(_KINDS, failed, strict=True) if count}
        return cls(
            calls=calls,
            cached=cached,
            coalesced=coalesced,
            tries=tries,
            paid=paid,
            failures=failures,
            latency_p95=float(rows[:, -1].max()),
        )

    def metrics(self) -> dict[str, float]:
        """Under the names of the log; rates are shares of all calls."""
        calls = max(self.calls, 1)
        rates = {f"search/failure_rate/{kind.value}": count / calls for kind, count in self.failures.items()}
        return rates | {
            "search/calls": float(self.calls),
            "search/tries": float(self.tries),
            "search/paid_calls": float(self.paid),
            "search/failure_rate": sum(self.failures.values()) / calls,
            "search/cache_hit": self.cached / calls,
            "search/coalesced": self.coalesced / calls,
            "search/latency_p95": self.latency_p95,
        }

    @property
    def infrastructure_failures(self) -> dict[FailureKind, int]:
        return {kind: count for kind, count in self.failures.items() if Failure(kind, "").infrastructure}


def end_if_search_is_gone(trainer: MMSearchGRPOTrainer, calls: SearchCalls) -> None:
    """Have the trainer save and end after this step where its searches are not answered; all ranks decide alike."""
    complaint = trainer.search_watch.complaint(calls.calls, calls.infrastructure_failures)
    if complaint is not None and trainer.ended_early is None:
        trainer.ended_early = complaint
        trainer.control.should_training_stop = trainer.control.should_save = True
        logger.error("The run ends after this step, and is saved: %s.", complaint)
