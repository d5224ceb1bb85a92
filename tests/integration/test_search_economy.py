"""No search is made twice: a group of eight looks its image up once, and a replay asks nobody."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from chaos.faulty_web import FaultyWeb

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import ImageQuery
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.image.serpapi_lens import SerpApiLens
from mmsearch_trl.search.runtime import Mode, SearchRuntime
from mmsearch_trl.search.text.retriever import Retriever
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.serpapi import KEY_VARIABLE, SerpApi


PROTOCOL = tiny.qwen25().restless()
LIMITS = Limits(max_turns=4, max_turn_tokens=6, max_response_tokens=400, image_search_limit=1, text_search_limit=2)


class Seeded:
    """An engine whose turns follow from the seed of the trajectory and what was said before."""

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        rng = random.Random(f"{sampling.seed}/{sum(token_ids)}")
        await asyncio.sleep(rng.random() * 0.01)
        ids = tuple(rng.randrange(PROTOCOL.chat.vocabulary_size) for _ in range(rng.randint(1, 6)))
        return Completion(ids, (-1.0,) * len(ids), FinishReason.LENGTH)


def backends(web: FaultyWeb) -> tuple[SerpApiLens, Retriever]:
    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    fetcher = Fetcher(allowed=lambda address: address == "127.0.0.1", lookup=here, ports=None)
    return SerpApiLens(SerpApi(web.url), fetcher), Retriever(web.url, corpus="test")


async def epoch(search: SearchRuntime, tasks: Sequence[Task]) -> list[Trajectory]:
    try:
        samplings = [SamplingParams(max_tokens=6, seed=i) for i in range(len(tasks))]
        return await run_batch(tasks, Seeded(), PROTOCOL, search, LIMITS, samplings)
    finally:
        await search.disconnect()
        search.close()


def shown(trajectories: Sequence[Trajectory]) -> list[object]:
    return [(t.prompt_ids, t.completion_ids, t.loss_mask, t.stop, _pixels(t)) for t in trajectories]


def _pixels(trajectory: Trajectory) -> list[bytes]:
    parts = [part for turn in trajectory.turns for part in turn.reply]
    return [part.image.tobytes() for part in parts if isinstance(part, ImageInput)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")


def test_a_group_on_one_picture_searches_for_it_once() -> None:
    async def run() -> FaultyWeb:
        async with FaultyWeb(0.0, seed=0) as web:
            [task] = tiny.tasks(1)
            search = SearchRuntime(*backends(web))
            group = [replace(task, id=f"rollout{number}") for number in range(8)]
            queries = [query for task in group if (query := ImageQuery.of(task)) is not None]
            found = await asyncio.gather(*(search.image_search(query) for query in queries))
            assert len(found) == 8 and all(each.hits == found[0].hits and each.hits for each in found)
            assert [each.coalesced for each in found].count(False) == 1
            await search.disconnect()
            return web

    web = asyncio.run(run())
    assert (web.calls["image"], web.calls["search.json"], web.calls["pictures"]) == (1, 1, 5)


def test_a_second_epoch_in_replay_asks_nobody_and_is_the_same(tmp_path: Path) -> None:
    async def run() -> None:
        async with FaultyWeb(0.0, seed=0) as web:
            tasks = tiny.tasks(24, images=(1, 2))
            first = await epoch(SearchRuntime(*backends(web), cache=ResultStore(tmp_path / "answers")), tasks)
            calls = dict(web.calls)
            assert calls["search.json"] > 5 and calls["retrieve"] > 5
            replay = SearchRuntime(*backends(web), cache=ResultStore(tmp_path / "answers"), mode=Mode.REPLAY)
            second = await epoch(replay, tasks)
            assert dict(web.calls) == calls, "a request was made"
            assert shown(second) == shown(first)
            assert all(each.failure is None for t in second for each in t.observations)

    asyncio.run(run())
