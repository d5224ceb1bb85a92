"""When somebody was at work: overlapping intervals of time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter


Span = tuple[float, float]


@dataclass(slots=True)
class Spans:
    """Intervals during which a request, or a tool call, was under way."""

    items: list[Span] = field(default_factory=list)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.items.append((start, perf_counter()))

    def total(self) -> float:
        """Sum of all, overlaps counted as often as they occur."""
        return sum(end - start for start, end in self.items)

    def union(self) -> list[Span]:
        """The same time as intervals that do not overlap, in order."""
        merged: list[Span] = []
        for start, end in sorted(self.items):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def covered(self) -> float:
        """Length of the union."""
        return length(self.union())

    def since(self, start: float) -> list[Span]:
        """The union, counted from a moment on, to the millisecond."""
        return [(round(first - start, 3), round(last - start, 3)) for first, last in self.union()]

    def shared(self, other: "Spans") -> float:
        """How long both were under way."""
        return length(intersection(self.union(), other.union()))


def length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)


def intersection(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """Common time of two ordered sequences of disjoint intervals."""
    common, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            common.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return common
