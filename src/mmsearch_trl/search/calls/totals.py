"""What searches came to, per tool: how many, what cached results and coalescing saved, and what they cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from mmsearch_trl.core.action import SEARCHES, ActionKind
from mmsearch_trl.search.calls.record import CallRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTotals:
    """Sums over calls of one tool.

    Attributes:
        calls: Searches that ended, or whose callers all left while the backend was asked.
        cached: Of these, answered by a cached result.
        coalesced: Of these, answered together with an identical one that was in flight.
        failed: Of these, not answered.
        tries: How often the backend was asked.
        paid: Tries that cost something.
        bytes: Received, as `cost.py` counts.
        price: Dollars, estimated: paid tries by the recipe's price; 0 where it gives none.
    """

    calls: int = 0
    cached: int = 0
    coalesced: int = 0
    failed: int = 0
    tries: int = 0
    paid: int = 0
    bytes: int = 0
    price: float = 0.0

    def __add__(self, other: "SearchTotals") -> "SearchTotals":
        return SearchTotals(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        )

    @classmethod
    def of(cls, record: CallRecord) -> "SearchTotals":
        return cls(
            calls=1,
            cached=int(record.cached),
            coalesced=int(record.coalesced),
            failed=int(record.failure is not None),
            tries=record.tries,
            paid=record.tries if record.paid else 0,
            bytes=record.bytes,
            price=record.price,
        )


def totals_of(records: Iterable[CallRecord]) -> dict[ActionKind, SearchTotals]:
    """Every tool's, those without calls included."""
    totals = dict.fromkeys(SEARCHES, SearchTotals())
    for record in records:
        totals[record.tool] += SearchTotals.of(record)
    return totals


def summary_lines(totals: Mapping[ActionKind, SearchTotals]) -> list[str]:
    """One line to read for each tool that was called."""
    return [_line(tool, total) for tool, total in totals.items() if total.calls]


def _line(tool: ActionKind, total: SearchTotals) -> str:
    shared = f"{total.cached} cached, {total.coalesced} shared, {total.failed} failed"
    line = f"{tool.replace('_', ' ')}: {total.calls} calls ({shared}), {total.tries} tries"
    line += f", {total.bytes / 1e6:.1f} MB received"
    if not total.paid:
        return line
    key = f"{'image' if tool == ActionKind.IMAGE_SEARCH else 'text'}.price_per_call"
    price = f"about ${total.price:.2f}" if total.price else f"price unknown (search.{key} is not set)"
    return f"{line}, {total.paid} tries paid: {price}"
