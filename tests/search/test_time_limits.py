"""With the time limits that ship: a host that is silent costs one thumbnail or one page, never the search."""

import asyncio
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Answer, Site, Write, response, serving
from PIL import Image
from virtual_clock import timed

from mmsearch_trl.core.errors import SearchLost
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.image.serpapi_lens import SerpApiLens
from mmsearch_trl.search.image.service import ImageService
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.pages import PageSearch
from mmsearch_trl.search.text.readers import WebReader
from mmsearch_trl.search.text.summarisers import Excerpt
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.page_text import PageReader
from mmsearch_trl.search.web.serpapi import KEY_VARIABLE, SerpApi


SHIPPED = CallPolicy()
PICTURE = Image.effect_noise((40, 30), 90).convert("RGB")
ARTICLE = "The Velm tower was built in 1880 by the town of Harwick. It is forty metres high and made of grey stone. "


def test_the_policy_of_a_call_is_what_a_recipe_has_by_default() -> None:
    config = SearchConfig()
    for item in dataclasses.fields(CallPolicy):
        if hasattr(config, item.name):
            assert getattr(SHIPPED, item.name) == getattr(config, item.name)


async def here(host: str, port: int) -> list[str]:
    """The system's own lookup, of which one name never answers."""
    if host.startswith("lost"):
        await asyncio.Event().wait()
    return ["127.0.0.1"]


def fetcher() -> Fetcher:
    """With all of its own limits."""
    return Fetcher(allowed=lambda address: address == "127.0.0.1", lookup=here, ports=None)


async def silent(write: Write) -> None:
    await asyncio.Event().wait()


async def dripping(write: Write) -> None:
    await write(response(Content_Length="100000"))
    while True:
        await write(b"x")
        await asyncio.sleep(1)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def answering(content: Any, after: float = 0.0) -> Answer:
    async def answer(write: Write) -> None:
        await asyncio.sleep(after)
        await write(response(json.dumps(content).encode(), Content_Type="application/json"))

    return answer


async def lens(thumbnails: Sequence[str], *, seconds: float = 0.0, policy: CallPolicy = SHIPPED) -> Any:
    """An image search whose hits' thumbnails lie at these paths, by a SerpApi that takes so long."""
    answers: dict[str, Answer] = {
        "/good": response(encoded(PICTURE), Content_Type="image/png"),
        "/silent": silent,
        "/dripping": dripping,
        "/image": answering({"image_id": "abc"}),
        "/account.json": silent,
    }
    async with serving(answers) as site:
        hosts = [f"http://{'lost' if path == '/lost' else 'web'}.example:{site.port}{path}" for path in thumbnails]
        matches = [{"title": path, "thumbnail": address} for path, address in zip(thumbnails, hosts, strict=True)]
        found = {"search_metadata": {"status": "Success"}, "visual_matches": matches}
        answers["/search.json"] = answering(found, seconds)
        backend = SerpApiLens(SerpApi(f"http://127.0.0.1:{site.port}"), fetcher())
        runtime = SearchRuntime(backend, None, image_policy=policy)
        try:
            return await runtime.image_search(ImageQuery(PICTURE)), site
        finally:
            await runtime.disconnect()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")


def shown(observation: Observation) -> list[bool]:
    assert observation.failure is None, observation.failure
    return [hit.thumbnail is not None for hit in observation.hits if isinstance(hit, ImageHit)]


@pytest.mark.parametrize("bad", ["/silent", "/dripping", "/lost", "/404"])
def test_a_host_that_is_silent_costs_one_thumbnail(bad: str) -> None:
    (observation, site), seconds = timed(lens(["/good", bad, "/good", "/good", "/good"]))
    assert shown(observation) == [True, False, True, True, True]
    assert [path.partition("?")[0] for path in site.requests].count("/search.json") == 1, "one paid search"
    assert seconds <= SHIPPED.try_timeout_s / 2


@pytest.mark.parametrize("taken", [4.0, 8.0, 9.5])
def test_thumbnails_have_what_time_the_service_leaves(taken: float) -> None:
    (observation, site), seconds = timed(lens(["/good", "/silent"], seconds=taken))
    assert shown(observation) == [taken < 9.0, False]
    assert sum(path.startswith("/search.json") for path in site.requests) == 1
    assert seconds < SHIPPED.try_timeout_s


@pytest.mark.parametrize("limit", [0.5, 2.0, 60.0])
def test_the_inner_limit_is_the_shorter_one_whatever_the_outer_is(limit: float) -> None:
    policy = CallPolicy(timeout_s=limit, try_timeout_s=limit)
    (observation, _), seconds = timed(lens(["/silent"] * 5, policy=policy))
    assert shown(observation) == [False] * 5 and seconds < limit


def test_a_service_that_never_says_whether_it_is_ready_is_not_waited_for() -> None:
    async def check() -> None:
        async with serving({"/account.json": silent}) as site:
            runtime = SearchRuntime(SerpApiLens(SerpApi(f"http://127.0.0.1:{site.port}"), fetcher()), None)
            await runtime.check()

    async def reason() -> str:
        with pytest.raises(SearchLost) as caught:
            await check()
        return str(caught.value)

    words, seconds = timed(reason())
    assert "no answer within 10 s" in words and seconds == pytest.approx(10, abs=0.5)


class Links:
    name, fingerprint = "links", "links-1"

    def __init__(self, addresses: Sequence[str], seconds: float) -> None:
        self._addresses, self._seconds = addresses, seconds
        self.asked = 0

    async def search(self, query: str, k: int) -> list[TextHit]:
        self.asked += 1
        await asyncio.sleep(self._seconds)
        return [TextHit(f"link {i}", "", url=address) for i, address in enumerate(self._addresses[:k])]


async def pages(
    paths: Sequence[str], *, seconds: float = 1.0, cache: ResultStore | None = None, searches: int = 1
) -> tuple[Observation, int, Site]:
    """A search of pages at these paths, after a search for addresses that takes so long; the last of several."""
    page = response(f"<html><title>Velm</title><body><p>{ARTICLE * 3}</p></body></html>".encode())
    answers: dict[str, Answer] = {"/good": page, "/silent": silent, "/dripping": dripping, "/account.json": silent}
    async with serving(answers) as site:
        links = Links([f"http://web.example:{site.port}{path}?{i}" for i, path in enumerate(paths)], seconds)
        runtime = SearchRuntime(
            None, PageSearch(links, WebReader(fetcher(), PageReader()), Excerpt(), cache=cache), cache=cache
        )
        observation = None
        for _ in range(searches):
            observation = await runtime.text_search("who built the Velm tower")
            answers["/silent"] = page
        await runtime.disconnect()
    assert observation is not None
    return observation, links.asked, site


@pytest.mark.parametrize("bad", ["/silent", "/dripping", "/404"])
@pytest.mark.parametrize("at", [(0, 1), (2,), (0, 5), (7, 8)])
def test_pages_that_are_silent_are_replaced(bad: str, at: Sequence[int]) -> None:
    paths = [bad if i in at else "/good" for i in range(9)]
    (observation, asked, _), seconds = timed(pages(paths))
    assert observation.failure is None and len(observation.hits) == 3
    assert asked == 1 and seconds < SHIPPED.try_timeout_s


@pytest.mark.parametrize("taken", [0.1, 4.0, 6.0])
def test_pages_that_were_read_are_handed_back_when_the_time_is_over(taken: float) -> None:
    paths = ["/silent", "/good", "/silent", "/silent", "/dripping", *["/silent"] * 4]
    (observation, asked, _), seconds = timed(pages(paths, seconds=taken))
    assert observation.failure is None and [hit.title for hit in observation.hits] == ["Velm"]
    assert asked == 1 and seconds < SHIPPED.try_timeout_s


def test_addresses_of_which_no_page_was_read_are_not_paid_for_again() -> None:
    (observation, asked, _), seconds = timed(pages(["/silent"] * 9))
    assert observation.failure is not None and observation.failure.kind is FailureKind.UNAVAILABLE
    assert asked == 1 and seconds <= SHIPPED.timeout_s


def test_an_answer_that_lacks_what_had_no_time_is_not_cached(tmp_path: Path) -> None:
    paths = ["/silent", "/good", *["/silent"] * 7]
    with_cache = pages(paths, cache=ResultStore(tmp_path / "cache.sqlite"), searches=2)
    (observation, _, _), _ = timed(with_cache)
    assert not observation.cached and len(observation.hits) == 3, "the hosts have come back"


def test_a_picture_of_an_image_service_that_takes_too_long_leaves_its_title(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Any, file: bytes, side: int | None = None) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("mmsearch_trl.search.calls.image_decoder.ImageDecoder.decode", never)

    async def search() -> Observation:
        hits = [{"title": "a", "thumbnail": "AAAA"}, {"title": "b"}]
        async with serving({"/image_search": answering({"hits": hits})}) as site:
            runtime = SearchRuntime(ImageService(f"http://127.0.0.1:{site.port}"), None)
            try:
                return await runtime.image_search(ImageQuery(PICTURE))
            finally:
                await runtime.disconnect()

    observation, seconds = timed(search())
    assert shown(observation) == [False, False] and seconds < SHIPPED.try_timeout_s
