"""How full an engine is: the reading by which a rollout decides whether to begin another trajectory."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """One reading of an engine; of the fullest, where an engine is several servers.

    Attributes:
        kv_usage: Share of the KV cache that running requests hold, 0 to 1.
        preemptions: Requests that were put back for want of cache since the engine began.
        running: Requests that are being generated.
        waiting: Requests that the engine has accepted and not begun.
        read_at: `time.monotonic()` when it was read.
    """

    kv_usage: float
    preemptions: int
    running: int
    waiting: int
    read_at: float


@runtime_checkable
class PressureSource(Protocol):
    """An engine that knows how full it is; most need not."""

    async def pressure(self) -> Pressure | None:
        """The present reading; None where there is none. May raise: that counts as none."""
        ...
