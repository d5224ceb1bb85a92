"""The client of Search-R1's retrieval contract."""

import asyncio
import json
from typing import Any

import pytest
from misbehaving import response, serving

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.text.retriever import Retriever


ROW = {"document": {"id": "7", "contents": '"Velm"\nVelm is a town.\nIt has a tower.'}, "score": 12.5}


def retrieve(body: Any, url: str = "http://127.0.0.1:{port}/retrieve") -> Any:
    async def run() -> Any:
        async with serving(response(json.dumps(body).encode(), Content_Type="application/json")) as site:
            retriever = Retriever(url.format(port=site.port))
            try:
                return await retriever.search("who?", 3)
            except SearchError as error:
                return error.failure.kind
            finally:
                await retriever.close()
                assert site.requests == ["/retrieve"]

    return asyncio.run(run())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/retrieve", "http://127.0.0.1:{port}", "http://127.0.0.1:{port}/"]
)
def test_passages_come_with_their_titles_and_scores(url: str) -> None:
    hit = TextHit(title='"Velm"', text="Velm is a town.\nIt has a tower.", score=12.5, id="7")
    assert retrieve({"result": [[ROW]]}, url) == [hit]


@pytest.mark.parametrize(
    "row",
    [
        {"document": '"Velm"\nA town.', "score": 1},
        {"document": '"Velm"\nA town.'},
        {"document": {"contents": '"Velm"\nA town.'}},
        {"id": "7", "contents": '"Velm"\nA town.'},
        '"Velm"\nA town.',
    ],
)
def test_the_shapes_of_search_r1_s_other_servers_are_understood(row: Any) -> None:
    [hit] = retrieve({"result": [[row]]})
    assert (hit.title, hit.text) == ('"Velm"', "A town.")


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [("One line.", "", "One line."), ("\nfirst\nsecond", "", "first\nsecond"), ("T\r\na\r\nb", "T", "a\r\nb")],
)
def test_the_first_line_is_the_title_where_it_is_not_the_only_one(contents: str, title: str, text: str) -> None:
    for document in (contents, {"contents": contents}):
        [hit] = retrieve({"result": [[{"document": document}]]})
        assert (hit.title, hit.text) == (title, text)


def test_nothing_found_is_an_empty_list() -> None:
    assert retrieve({"result": [[]]}) == []


@pytest.mark.parametrize(
    "body",
    [
        [], {}, {"result": []}, {"result": [[ROW], [ROW]]}, {"result": None}, {"result": [None]}, {"result": [[None]]},
        {"result": [[{}]]}, {"result": [[{"document": None}]]}, {"result": [[{"document": {"contents": 3}}]]},
        {"result": [[{"document": "a", "score": "high"}]]}, {"result": [[3]]}, "result",
        {"result": [[{"document": []}]]},
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_a_bad_response(body: Any) -> None:
    assert retrieve(body) is FailureKind.BAD_RESPONSE


def test_what_is_asked_and_how() -> None:
    """Scores are asked for always: without, the reference server answers two queries with the wrong documents."""
    seen: list[Any] = []

    async def run() -> None:
        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            seen.append((head, json.loads(await reader.readexactly(length))))
            writer.write(response(json.dumps({"result": [[]]}).encode()))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(note, "127.0.0.1", 0)
        retriever = Retriever(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", token="sesame")
        await retriever.search("who?", 4)
        await retriever.close()
        server.close()

    asyncio.run(run())
    [(head, body)] = seen
    assert body == {"queries": ["who?"], "topk": 4, "return_scores": True}
    assert "authorization: bearer sesame" in head.lower()


def test_another_corpus_under_the_same_address_is_another_backend() -> None:
    fingerprints = {
        Retriever(url, corpus=corpus).fingerprint for url in ("http://a:1", "http://b:1") for corpus in "xy"
    }
    assert len(fingerprints) == 4
    assert Retriever("http://a:1/retrieve").fingerprint == Retriever("http://a:1/").fingerprint
