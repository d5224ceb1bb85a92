"""One line of the runtime's log."""

from dataclasses import dataclass

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import FailureKind


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One line of the runtime's log, from which search metrics are computed.

    Of calls that shared one answer, only the first to get it bears its tries, bytes and price.

    Attributes:
        tries: How often the backend was called.
        paid: Whether each try costs something.
        bytes: Received for it.
        price: Dollars that the tries are estimated to have cost.
    """

    tool: ActionKind
    seconds: float
    cached: bool
    coalesced: bool
    tries: int = 0
    paid: bool = False
    failure: FailureKind | None = None
    bytes: int = 0
    price: float = 0.0
