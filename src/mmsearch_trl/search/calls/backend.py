"""What a search returns: typed hits, or a typed failure; never free text whose wording decides what happened.

A backend raises `SearchError`; the runtime turns it into an `Observation` with a `failure`, so that a tool that breaks
is a value that the rollout records and not an exception that ends a training step.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mmsearch_trl.core.observation import Hit


Answer = Sequence[Hit]
"""What a backend gives: hits, best first; none: "searched and found nothing"."""

QueryT = TypeVar("QueryT", contravariant=True)


class SearchBackend(Protocol[QueryT]):
    """One way to answer a query. `fingerprint` changes whenever the same query could get another answer.

    Of these a backend may say more, each with an attribute or method that others leave out:

    * `by_pixels = True`: an image backend whose answers depend on the pixels alone. Equal images share one call and
      one cached result whatever the rows they come from are called.
    * `paid = True`: each call costs something, and is counted against `max_paid_calls`.
    * `async check()`: see that it is ready, at no cost; raises `SearchError`.
    * `async close()`: close its connections; the next search, perhaps on another event loop, opens them again.
    """

    name: str
    fingerprint: str

    async def search(self, query: QueryT, k: int) -> Answer:
        """Return at most `k` hits, best first; an empty sequence means "searched and found nothing".

        Raises:
            SearchError: the backend could not answer.
        """
        ...
