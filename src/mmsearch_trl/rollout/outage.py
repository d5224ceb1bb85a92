"""Engines and searches that cannot work: what does not pass by itself ends a run, with the first reason.

A rollout that fails is masked and counted, a search that fails is told to the policy: neither may go on for ever, for
a run that trains, or measures, nothing looks like one that does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from mmsearch_trl.core.errors import EngineLost, SearchLost, shortened
from mmsearch_trl.core.failure_monitor import FailureMonitor
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.core.trajectory import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class Tally:
    """How a batch went.

    Attributes:
        failed: Rollouts that the engine, or a defect, ended.
        search_failures: Of searches, through no fault of the policy.
        first_failure: Why the first of the failed rollouts failed.
        first_search_failure: The same of the searches.
    """

    rollouts: int = 0
    failed: int = 0
    searches: int = 0
    search_failures: Counter[FailureKind] = field(default_factory=Counter)
    first_failure: str | None = None
    first_search_failure: str | None = None

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> "Tally":
        return reduce(add, map(_tally, trajectories), cls())

    @property
    def spoiled(self) -> bool:
        """Whether something failed through no fault of the policy."""
        return bool(self.failed or self.search_failures)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.rollouts + other.rollouts,
            self.failed + other.failed,
            self.searches + other.searches,
            self.search_failures + other.search_failures,
            self.first_failure or other.first_failure,
            self.first_search_failure or other.first_search_failure,
        )


def _tally(trajectory: Trajectory) -> Tally:
    searches = list(trajectory.searches)
    failures = [each.failure for each in searches if each.failure is not None and each.failure.infrastructure]
    # A rollout that its searches ended is theirs to be counted.
    by_engine = trajectory.stop is StopReason.FAILED and trajectory.failure not in failures
    return Tally(
        rollouts=int(trajectory.stop is not StopReason.STRAGGLER),
        failed=int(by_engine),
        searches=len(searches),
        search_failures=Counter(failure.kind for failure in failures),
        first_failure=shortened(trajectory.failure.message) if by_engine and trajectory.failure else None,
        first_search_failure=shortened(f"{failures[0].kind.value}: {failures[0].message}") if failures else None,
    )


class OutageMonitor:
    """Looks at each batch of a run; every rank of it at the same batches.

    Args:
        max_rollout_failure_share: Share of failed rollouts that is still borne.
        max_search_failure_share: The same of searches.
        window: Rollouts, and searches, over which the shares are taken.
        few: So many rollouts without one that was finished are enough to judge by.
    """

    def __init__(
        self, max_rollout_failure_share: float, max_search_failure_share: float, window: int, *, few: int = 20
    ) -> None:
        self._rollouts = FailureMonitor(
            max_rollout_failure_share, window, noun="rollouts", option="max_rollout_failure_share", few=few
        )
        self._searches = FailureMonitor(max_search_failure_share, window)
        self._seen = Tally()

    def lost(self, batch: Tally) -> EngineLost | SearchLost | None:
        """Why the run should end after this batch; None when it may go on.

        What it judged by is forgotten then: who has the run go on has seen to the reason.
        """
        self._seen += batch
        failed = {FailureKind.UNAVAILABLE: batch.failed} if batch.failed else {}
        error = self._error(
            self._rollouts.abort_reason(batch.rollouts, failed),
            self._searches.abort_reason(batch.searches, batch.search_failures),
        )
        if error is not None:
            self.go_on_from({})
        return error

    @property
    def has_seen(self) -> bool:
        """Whether any batch has come since it began, or last forgot."""
        return len(self._rollouts.state()) > 1

    def state(self) -> dict[str, Any]:
        """What it has seen, for JSON: a run that is resumed is judged by all of it."""
        told = [self._seen.first_failure, self._seen.first_search_failure]
        return {"rollouts": self._rollouts.state(), "searches": self._searches.state(), "first": told}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` told; nothing has been seen where it is empty."""
        self._rollouts.go_on_from(state.get("rollouts", ()))
        self._searches.go_on_from(state.get("searches", ()))
        first, first_search = state.get("first", (None, None))
        self._seen = Tally(first_failure=first, first_search_failure=first_search)

    def lost_at_end(self) -> EngineLost | SearchLost | None:
        """Why what came of the run is worth nothing; None when it is worth something."""
        return self._error(self._rollouts.end_reason(), self._searches.end_reason())

    def _error(self, rollouts: str | None, searches: str | None) -> EngineLost | SearchLost | None:
        if rollouts is not None:
            return EngineLost(f"{rollouts}; the first: {self._seen.first_failure}")
        if searches is not None:
            return SearchLost(f"{searches}; the first: {self._seen.first_search_failure}")
        return None
