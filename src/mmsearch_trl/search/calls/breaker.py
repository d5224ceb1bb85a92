"""When to stop asking a backend that fails call after call, and when to ask again.

A pure state machine; the caller has the clock. Closed, every call goes through. After so many failures in a row it
opens: for a while no call goes through. Then one does: if it succeeds all may, if it fails the wait begins anew.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class CircuitBreaker:
    """
    Args:
        failures: Failures in a row after which it opens.
        pause_s: Seconds for which it then stays open.
    """

    failures: int = 8
    pause_s: float = 15.0
    _in_a_row: int = 0
    _open_until: float | None = None
    _probing: bool = False

    def refuses(self, now: float) -> bool:
        """Whether no call may begin."""
        return self._open_until is not None and (now < self._open_until or self._probing)

    def let_through(self, now: float) -> bool:
        """Whether a call may begin. One that may must be told of by `ended` or `abandoned`."""
        if self.refuses(now):
            return False
        self._probing = self._open_until is not None
        return True

    def ended(self, *, failed: bool, now: float) -> None:
        """A call has ended; `failed` where the backend is to blame."""
        if not failed:
            self._in_a_row, self._open_until, self._probing = 0, None, False
            return
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self._open_until, self._probing = now + self.pause_s, False

    def abandoned(self) -> None:
        """A call was given up before its outcome was known."""
        self._probing = False
