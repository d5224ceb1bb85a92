"""The slow tools: the project's own search runtime in front of backends that sleep for the scenario's times."""

import asyncio
from collections.abc import Sequence

from benchmarks.rollout.scenario import Scenario

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import ImageHit, ImageQuery, TextHit
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.runtime import SearchRuntime


_NO_TIMEOUT_S = 3600.0


class SleepingImageSearch:
    """Args: `by_pixels` lets rollouts that look up the same image share one call."""

    name = "sleeping image search"
    fingerprint = "1"

    def __init__(self, scenario: Scenario, scale: float, by_pixels: bool) -> None:
        self._scenario = scenario
        self._scale = scale
        self.by_pixels = by_pixels
        self.calls = 0

    async def search(self, query: ImageQuery, k: int) -> Sequence[ImageHit]:
        self.calls += 1
        row = self._scenario.row(query.data_id or "")
        await asyncio.sleep(self._scale * row.seconds[ActionKind.IMAGE_SEARCH])
        return self._scenario.image_hits(row)[:k]


class SleepingTextSearch:
    name = "sleeping text search"
    fingerprint = "1"

    def __init__(self, scenario: Scenario, scale: float) -> None:
        self._scenario = scenario
        self._scale = scale

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        row = self._scenario.row_of_query(query)
        await asyncio.sleep(self._scale * row.seconds[ActionKind.TEXT_SEARCH])
        return self._scenario.text_hits(row)[:k]


def tools(
    scenario: Scenario,
    *,
    scale: float = 1.0,
    coalescing: bool = False,
    cache: ResultStore | None = None,
    slots: int | None = None,
) -> SearchRuntime:
    """The tools of one run.

    Args:
        scale: Factor on all tool times.
        coalescing: Rollouts of a group share the search of their image; off, every call takes its own time.
        slots: Calls in flight at a time; None for as many as there are rollouts.
    """
    policy = CallPolicy(timeout_s=_NO_TIMEOUT_S, try_timeout_s=_NO_TIMEOUT_S, max_concurrency=slots or scenario.k)
    return SearchRuntime(
        SleepingImageSearch(scenario, scale, coalescing),
        SleepingTextSearch(scenario, scale),
        image_policy=policy,
        text_policy=policy,
        cache=cache,
    )
