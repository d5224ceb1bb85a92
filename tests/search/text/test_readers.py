"""Pages read here, and by a stand-in of Jina Reader."""

import asyncio
import json
from typing import Any

import pytest
from misbehaving import response, serving

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.section import Shared
from mmsearch_trl.search.text.pages import PagesConfig
from mmsearch_trl.search.text.readers import JINA_KEY_VARIABLE, JinaReader, WebReader
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.page_text import PageReader, PageText


def jina(body: Any) -> Any:
    async def run() -> Any:
        async with serving(response(json.dumps(body).encode(), Content_Type="application/json")) as site:
            reader = JinaReader(f"http://127.0.0.1:{site.port}")
            try:
                return await reader.read("http://pages.example/a#b")
            except SearchError as error:
                return error.failure.kind
            finally:
                await reader.close()
                assert site.requests == ["/"]

    return asyncio.run(run())


def test_jina_s_text_and_title() -> None:
    body = {"code": 200, "status": 20000, "data": {"title": "Velm", "url": "u", "content": "A tower."}}
    assert jina(body) == PageText("Velm", "A tower.")
    assert jina({"data": {"title": None, "content": "A tower."}}) == PageText("", "A tower.")


@pytest.mark.parametrize(
    "body", [{}, [], {"data": None}, {"data": []}, {"data": {"content": " "}}, {"data": {"content": 3}}]
)
def test_an_answer_without_text_is_a_bad_response(body: Any) -> None:
    assert jina(body) is FailureKind.BAD_RESPONSE


@pytest.mark.parametrize(
    "url",
    [
        "https://answers.example/a", "http://www.ANSWERS.example./", "http://169.254.169.254/latest/", "file:///etc/passwd",
        "http://127.0.0.1/", "http://user:word@pages.example/", "http://pages.example:6379/", "http://[::ffff:7f00:1]/",
        "http://168.63.129.16/machine", "",
    ],
)  # fmt: skip
def test_a_service_is_not_asked_for_what_is_denied_here(url: str) -> None:
    async def run() -> None:
        async with serving(response(b'{"data": {"content": "c"}}', Content_Type="application/json")) as site:
            reader = JinaReader(f"http://127.0.0.1:{site.port}", denied_hosts=["*.answers.example"])
            with pytest.raises(SearchError) as caught:
                await reader.read(url)
            await reader.close()
        assert caught.value.failure.kind is FailureKind.BLOCKED and site.requests == []

    asyncio.run(run())


def test_a_page_that_a_service_found_at_a_denied_host_is_not_read() -> None:
    body = {"data": {"url": "https://www.answers.example/a", "content": "the answer"}}

    async def run() -> None:
        async with serving(response(json.dumps(body).encode(), Content_Type="application/json")) as site:
            reader = JinaReader(f"http://127.0.0.1:{site.port}", denied_hosts=["https://answers.example:443"])
            with pytest.raises(SearchError, match="denied_hosts"):
                await reader.read("https://short.example/x")
            await reader.close()

    asyncio.run(run())


def test_a_recipe_s_denied_hosts_reach_either_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", "sesame")
    for name in ("web", "jina"):
        section = PagesConfig(links="serpapi", reader=name)  # pyright: ignore[reportArgumentType]
        search = section.open(Shared(denied_hosts=["*.answers.example"]))
        assert search._reader.rules.denied == ("answers.example",)


def test_the_key_goes_into_the_header_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JINA_KEY_VARIABLE, "sesame")
    reader = JinaReader("http://127.0.0.1:9")
    assert reader._service._headers["Authorization"] == "Bearer sesame"
    assert "sesame" not in reader.fingerprint


def test_a_page_of_the_web_is_fetched_and_parsed_here() -> None:
    words = "The Velm tower was built in 1880 and is forty metres high. It stands in Harwick, as everybody knows. "
    page = f"<html><title>Velm</title><body><article><p>{words * 3}</p></article></body></html>".encode()

    async def run() -> PageText:
        async def here(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        async with serving({"/velm": response(page)}) as site:
            fetcher = Fetcher(allowed=lambda address: address == "127.0.0.1", lookup=here, ports=None)
            reader = WebReader(fetcher, PageReader(processes=1))
            try:
                return await reader.read(f"http://pages.example:{site.port}/velm")
            finally:
                await reader.close()

    found = asyncio.run(run())
    assert found.title == "Velm" and "built in 1880" in found.text
