"""How many paid calls a run may make."""

from dataclasses import dataclass

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind


@dataclass(slots=True)
class Budget:
    """Counts paid calls; the one after the last allowed is not made.

    Args:
        limit: Calls allowed; None for any number.
    """

    limit: int | None = None
    spent: int = 0

    def spend(self) -> None:
        """Account for one call.

        Raises:
            SearchError: `QUOTA_SPENT`: the limit is reached.
        """
        if self.limit is not None and self.spent >= self.limit:
            raise SearchError(FailureKind.QUOTA_SPENT, f"all {self.limit} paid calls have been made (max_paid_calls)")
        self.spent += 1
