"""Whether a run may go on: a policy that is trained while its searches fail learns that searching is useless, and one
whose rollouts fail learns nothing."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mmsearch_trl.core.observation import FailureKind


LASTING = (FailureKind.QUOTA_SPENT, FailureKind.KEY_REFUSED)
"""After one of these no later call can be answered either."""


_WORDS = {
    FailureKind.QUOTA_SPENT: "its quota is spent (or `search.max_paid_calls` is reached)",
    FailureKind.KEY_REFUSED: "it refuses the key",
}


class FailureMonitor:
    """Looks at the searches, or at the rollouts, of each batch. Pure.

    Args:
        max_failure_share: Share of failures that is still borne.
        window: Calls over which the share is taken; before there were so many, nothing is said of it.
        noun: What the calls are.
        option: Name of the first argument where a person gives it.
        few: So many failures without a single success are enough to judge by.
    """

    def __init__(
        self,
        max_failure_share: float,
        window: int,
        *,
        noun: str = "searches",
        option: str = "max_search_failure_share",
        few: int = 20,
    ) -> None:
        self._share = max_failure_share
        self._window = window
        self._noun = noun
        self._option = option
        self._few = few
        self._batches: deque[tuple[int, int]] = deque()
        self._in_a_row = 0
        """Failures since the last batch with a success."""

    def state(self) -> list[Any]:
        """What it has seen, for JSON."""
        return [self._in_a_row, *self._batches]

    def go_on_from(self, state: Sequence[Any]) -> None:
        """Go on from what `state` told; nothing has been seen where it is empty."""
        self._in_a_row = state[0] if state else 0
        self._batches = deque((calls, failed) for calls, failed in state[1:])

    def abort_reason(self, calls: int, failures: Mapping[FailureKind, int]) -> str | None:
        """Why the run should end after a batch with these calls; None when it may go on.

        Args:
            calls: Calls of the batch.
            failures: How many of them failed through the infrastructure's fault, by kind.
        """
        for kind in LASTING:
            if failures.get(kind):
                return f"a search was not answered, and none will be: {_WORDS[kind]}"
        failed = sum(failures.values())
        self._in_a_row = self._in_a_row + failed if failed == calls else 0
        self._batches.append((calls, failed))
        while sum(count for count, _ in self._batches) - self._batches[0][0] >= self._window:
            self._batches.popleft()
        return self._reason(failures)

    def end_reason(self) -> str | None:
        """Why what has ended is worth nothing, however few calls it made; None when it is worth something."""
        seen, failed = self._seen()
        if seen and failed == seen and self._share < 1:
            return f"none of {seen} {self._noun} worked"
        return self._too_many({}) if seen >= self._few else None

    def _reason(self, failures: Mapping[FailureKind, int]) -> str | None:
        if self._in_a_row >= self._few and self._share < 1:
            return f"none of the last {self._in_a_row} {self._noun} worked"
        return self._too_many(failures) if self._seen()[0] >= self._window else None

    def _too_many(self, failures: Mapping[FailureKind, int]) -> str | None:
        seen, failed = self._seen()
        if failed <= self._share * seen:
            return None
        worst = max(failures, key=lambda kind: failures[kind], default=None)
        last = f", lately most of them with {worst.value!r}" if worst is not None and failures[worst] else ""
        return f"{failed} of the last {seen} {self._noun} failed{last} (more than {self._option})"

    def _seen(self) -> tuple[int, int]:
        return sum(calls for calls, _ in self._batches), sum(failed for _, failed in self._batches)
