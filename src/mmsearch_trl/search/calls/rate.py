"""How many calls a second a backend may be sent: a token bucket, and the pause that a backend itself asks for.

Pure; the caller has the clock and does the waiting.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """
    Args:
        per_second: Calls a second, in the long run.
        burst: Calls that may come at once after a quiet time.
    """

    per_second: float
    burst: float = 1.0
    _tokens: float | None = None
    _at: float = 0.0

    def reserve(self, now: float) -> float:
        """Take the next free place; returns the seconds until it."""
        tokens = self.burst if self._tokens is None else self._tokens + (now - self._at) * self.per_second
        self._tokens, self._at = min(self.burst, tokens) - 1.0, now
        return max(0.0, -self._tokens / self.per_second)

    def give_back(self) -> None:
        """The place reserved last is not needed: its caller has no time to wait for it."""
        assert self._tokens is not None
        self._tokens += 1.0
