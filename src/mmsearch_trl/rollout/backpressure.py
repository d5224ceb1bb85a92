"""How many trajectories may be in flight, by how full the engine's KV cache is: a pure rule, told readings and time.

An engine whose cache overflows preempts requests and forgets the prefixes of trajectories that wait for a tool, and
then computes both again. The rule keeps it below that, by a cap on the trajectories begun and not ended:

1. *Cut.* At or above the high-water mark, or after a preemption (the cache was full between two readings), the cap
   becomes three quarters of what is in flight: a cap that nobody reaches would limit nothing.
2. *Wait for the cut.* No trajectory is ever stopped, so a cut works only as trajectories end. While more than the cap
   are in flight, a full cache is no news and causes no further cut.
3. *Grow.* At or below the low-water mark the cap grows by an eighth, at least 1, while it is what holds trajectories
   back: all of it is in use, and no request waits inside the engine (one that does waits for something else than
   cache, and more would wait with it).
4. *Rest.* Between the marks nothing changes. A cut from the high mark lands below the low one and a growth from there
   lands between them, so a steady load comes to rest, where additive increase with a fixed step would swing for ever:
   that is for flows which share a link fairly, and here is one flow. Caps below 8 move by more than an eighth and
   may swing by 1.
5. A reading that is missing, old, seen before or no number changes nothing.

It starts at the maximum: a batch that fits needs no brake. What it has learned is kept from batch to batch.
"""

import math
from dataclasses import dataclass, field

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine.pressure import Pressure


LOW_SHARE = 0.8
"""The low-water mark as a share of the high one."""

KEPT_BY_A_CUT = 0.75
"""Less than `LOW_SHARE`, so that a cut ends below the low mark; not by far, so that little of the engine lies idle."""

GROWTH_DIVISOR = 8
"""Growth from the low mark, by 1/8, stays below the high one (0.8 x 1.125 = 0.9)."""

STALE_SECONDS = 5.0
"""A reading older than this tells of trajectories that are gone."""


@dataclass(slots=True)
class Backpressure:
    """The cap and what the next decision needs.

    Attributes:
        maximum: The cap's upper bound, and its start.
        high_water: KV-cache usage that is too much.
        cap: Trajectories that may be in flight, 1 to `maximum`.
    """

    maximum: int
    high_water: float = 0.9
    cap: int = field(init=False)
    _preemptions: int | None = field(init=False, default=None)
    _read_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        if self.maximum < 1 or not 0 < self.high_water <= 1:
            raise UserError(
                f"A cap of at least 1 and a mark in (0, 1] are needed, got {self.maximum} and {self.high_water}."
            )
        self.cap = self.maximum

    def observe(self, reading: Pressure | None, *, in_flight: int, now: float) -> int:
        """Take a reading into account and return the cap.

        Args:
            in_flight: Trajectories begun and not ended.
            now: On the clock of `Pressure.read_at`, seconds.
        """
        if reading is None or not self._is_news(reading, now):
            return self.cap
        preempted = self._preemptions is not None and reading.preemptions > self._preemptions
        self._preemptions, self._read_at = reading.preemptions, reading.read_at
        if preempted or reading.kv_usage >= self.high_water:
            if in_flight <= self.cap:
                # Rounded up: a small cap cut to below three quarters would grow past its mark again, and swing by 2.
                self.cap = max(1, min(in_flight - 1, math.ceil(in_flight * KEPT_BY_A_CUT)))
        elif reading.kv_usage <= LOW_SHARE * self.high_water and in_flight >= self.cap and not reading.waiting:
            self.cap = min(self.maximum, self.cap + max(1, self.cap // GROWTH_DIVISOR))
        return self.cap

    def _is_news(self, reading: Pressure, now: float) -> bool:
        fresh = self._read_at < reading.read_at and now - reading.read_at <= STALE_SECONDS
        return fresh and reading.kv_usage >= 0  # false for NaN
