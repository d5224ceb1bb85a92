"""What one search costs: how often a backend was asked, and the bytes that it sent.

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

    def taken(self) -> "Cost":
        """The cost for whoever asks first; for those who ask later there is none left."""
        taken = Cost(self.tries, self.bytes)
        self.tries = self.bytes = 0
        return taken


_of_this_search: ContextVar[Cost | None] = ContextVar("mmsearch_cost", default=None)


@contextmanager
def counting() -> Iterator[Cost]:
    """Within, what this task and those that it begins ask and receive is counted."""
    cost = Cost()
    token = _of_this_search.set(cost)
    try:
        yield cost
    finally:
        _of_this_search.reset(token)


def asked() -> None:
    """Account for one try; nobody need be counting."""
    if (cost := _of_this_search.get()) is not None:
        cost.tries += 1


def received(count: int) -> None:
    """Account for bytes that were read; nobody need be counting."""
    if (cost := _of_this_search.get()) is not None:
        cost.bytes += count
