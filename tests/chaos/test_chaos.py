"""A hundred rollout batches on a web of which a third is broken: nobody is lost, nothing is late, nothing is left."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
import pytest
import tiny
from chaos.faulty_web import FAULTS, HERE, MOVED, NAME_FAULTS, FaultyWeb

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.trajectory import StopReason
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.calls.breaker import CircuitBreaker
from mmsearch_trl.search.image.serpapi_lens import SerpApiLens
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.pages import PageSearch
from mmsearch_trl.search.text.readers import JinaReader
from mmsearch_trl.search.text.retriever import Retriever
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogle
from mmsearch_trl.search.text.summarisers import ChatSummariser
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.serpapi import KEY_VARIABLE, SerpApi


PROTOCOL = tiny.qwen25().restless()
LIMITS = Limits(max_turns=4, max_turn_tokens=6, max_response_tokens=300, image_search_limit=1, text_search_limit=2)
BATCHES, AT_ONCE, TASKS = 100, 10, 8
POLICY = CallPolicy(timeout_s=1.0, try_timeout_s=0.3, retries=4)
SEARCHES = 3
"""At most, of a trajectory."""
SLACK_S = 3.0
"""For the engine, the images, and a busy machine."""


class Babbler:
    """An engine that says anything, in no time."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        ids = tuple(self._rng.randrange(PROTOCOL.chat.vocabulary_size) for _ in range(self._rng.randint(1, 6)))
        return Completion(ids, (-1.0,) * len(ids), FinishReason.LENGTH)


def runtime(web: FaultyWeb, kind: str) -> SearchRuntime:
    fetcher = Fetcher(allowed=lambda address: address in (HERE, MOVED), lookup=web.lookup, ports=None, timeout_s=0.2)
    api = SerpApi(web.url)
    text: Any = Retriever(web.url)
    if kind == "pages":
        text = PageSearch(
            SerpApiGoogle(api), JinaReader(web.url), ChatSummariser(f"{web.url}/v1", "small"), page_timeout_s=0.1
        )
    search = SearchRuntime(SerpApiLens(api, fetcher), text, image_policy=POLICY, text_policy=POLICY)
    for client in search._clients.values():  # a breaker would spare the web most of what is tested here
        client._breaker = CircuitBreaker(failures=10**9)
    return search


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retriever", "pages"])
def test_rollouts_on_a_broken_web(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame-open")
    process = psutil.Process()
    outcomes: Counter[str] = Counter()

    async def one(batch: int, search: SearchRuntime) -> None:
        tasks = tiny.tasks(TASKS, seed=batch)
        samplings = [SamplingParams(max_tokens=6, seed=i) for i in range(TASKS)]
        start = time.monotonic()
        trajectories = await run_batch(tasks, Babbler(batch), PROTOCOL, search, LIMITS, samplings)
        assert time.monotonic() - start < SEARCHES * POLICY.timeout_s + SLACK_S
        assert [trajectory.task.id for trajectory in trajectories] == [task.id for task in tasks]
        for trajectory in trajectories:  # given up after two failed searches in a row, and only then
            failed = [bool(seen.failure and seen.failure.infrastructure) for seen in trajectory.observations]
            assert (trajectory.stop is StopReason.FAILED) == (failed[-2:] == [True, True])
        for observation in (seen for each in trajectories for seen in each.observations):
            outcomes[observation.failure.kind.value if observation.failure else "answered"] += 1
            assert "sesame" not in repr(observation.failure)

    async def run() -> FaultyWeb:
        async with FaultyWeb(0.3, seed=1) as web:
            search = runtime(web, kind)
            before = asyncio.all_tasks()
            for first in range(0, BATCHES, AT_ONCE):
                await asyncio.gather(*(one(batch, search) for batch in range(first, first + AT_ONCE)))
            assert len(search.drain_records()) == sum(outcomes.values())
            await search.disconnect()
            search.close()
            await asyncio.sleep(0.3)
            ours = asyncio.all_tasks() - before - web._tasks
            assert not ours, ours
            return web

    files = process.num_fds()
    web = asyncio.run(run())
    assert process.num_fds() <= files + 1, "a socket or file is left open"
    assert set(web.faults) == {*FAULTS, *NAME_FAULTS}
    assert web.intruders == 0, "an address inside was dialled"
    assert outcomes["answered"] > 50 and len(outcomes) > 3, outcomes  # how many depends on how busy the machine is
