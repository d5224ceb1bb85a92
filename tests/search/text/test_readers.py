"""Pages read here, and by a stand-in of Jina Reader."""

import asyncio
import json
from typing import Any

import pytest
from misbehaving import response, serving

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
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
