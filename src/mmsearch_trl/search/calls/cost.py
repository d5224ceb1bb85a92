"""What one search costs: how often a backend was tried, the bytes that it sent, and whether time was short.

The count is handed down in a context variable, so that it reaches every task which the search begins, and no other
search. Counted are bodies, of failed tries too: pages and images as they came, JSON of services after decompression.
Headers are not; nor is what clients of another make (`ddgs`, MCP, Qdrant, OpenSearch) receive.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Cost:
    """Of one search, so far."""

    tries: int = 0
    bytes: int = 0
    cut: bool = False
    """Parts are missing that had no time: another time there may be more, so that this answer is not cached."""

    def take(self) -> "Cost":
        """The cost for the first caller; for later ones there is none left."""
        taken = Cost(self.tries, self.bytes)
        self.tries = self.bytes = 0
        return taken


_of_this_search: ContextVar[Cost | None] = ContextVar("mmsearch_cost", default=None)


@contextmanager
def counting() -> Iterator[Cost]:
    """Within, the tries and bytes of this task, and of those that it begins, are counted."""
    cost = Cost()
    token = _of_this_search.set(cost)
    try:
        yield cost
    finally:
        _of_this_search.reset(token)


def count_try() -> None:
    """Count one try, where somebody counts."""
    if (cost := _of_this_search.get()) is not None:
        cost.tries += 1


def count_bytes(count: int) -> None:
    """Count bytes that were read, where somebody counts."""
    if (cost := _of_this_search.get()) is not None:
        cost.bytes += count


def note_cut() -> None:
    """Say that parts of the answer are missing because there was no time for them, where somebody listens."""
    if (cost := _of_this_search.get()) is not None:
        cost.cut = True
