"""Whether a run may go on: a policy that is trained while its searches fail learns that searching is useless."""

from collections import deque
from collections.abc import Mapping

from mmsearch_trl.core.observation import FailureKind


LASTING = (FailureKind.QUOTA_SPENT, FailureKind.KEY_REFUSED)
"""After one of these no later call can be answered either."""


_WORDS = {
    FailureKind.QUOTA_SPENT: "its quota is spent (or `search.max_paid_calls` is reached)",
    FailureKind.KEY_REFUSED: "it refuses the key",
}


class FailureMonitor:
    """Looks at the calls of each batch. Pure.

    Args:
        max_failure_share: Share of failed calls that is still borne.
        window: Calls over which the share is taken; before there were so many, nothing is said of it.
    """

    def __init__(self, max_failure_share: float, window: int) -> None:
        self._share = max_failure_share
        self._window = window
        self._batches: deque[tuple[int, int]] = deque()

    def abort_reason(self, calls: int, failures: Mapping[FailureKind, int]) -> str | None:
        """Why the run should end after a batch with these calls; None when it may go on.

        Args:
            calls: Calls of the batch.
            failures: How many of them failed through the infrastructure's fault, by kind.
        """
        for kind in LASTING:
            if failures.get(kind):
                return f"a search was not answered, and none will be: {_WORDS[kind]}"
        self._batches.append((calls, sum(failures.values())))
        while sum(count for count, _ in self._batches) - self._batches[0][0] >= self._window:
            self._batches.popleft()
        seen, failed = (sum(column) for column in zip(*self._batches, strict=True))
        if seen < self._window or failed <= self._share * seen:
            return None
        worst = max(failures, key=lambda kind: failures[kind], default=None)
        last = f", lately most of them with {worst.value!r}" if worst is not None and failures[worst] else ""
        return f"{failed} of the last {seen} searches failed{last} (more than max_search_failure_share)"
