"""The retrieval server as its clients see it: a real one on loopback, asked over HTTP."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from misbehaving import response, serving
from PIL import Image
from search.over_http import free_port, get, post, served

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, ImageQuery, TextHit
from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.image.service import ImageService
from mmsearch_trl.search.index_build import build_image_index, build_text_index
from mmsearch_trl.search.requests import MAX_QUERIES, MAX_QUERY_CHARS, MAX_TOP_K
from mmsearch_trl.search.server import MAX_BODY
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.search.text.retriever import Retriever


CORPUS = [
    {"id": "0", "contents": '"Velm"\nVelm is a town with a tower.'},
    {"id": "1", "contents": '"Harwick"\nHarwick is a town with a market.'},
    {"id": "2", "contents": '"Oakham"\nOakham casts bells.'},
    {"id": "3", "contents": "No title here."},
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> TextIndex:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, CORPUS)))
    build_text_index(folder / "corpus.jsonl", folder / "index", progress=False)
    return TextIndex.open(folder / "index")


@pytest.fixture(scope="module")
def url(index: TextIndex) -> Iterator[str]:
    with served(index, top_k=2) as address:
        yield address


def test_documents_come_with_scores_best_first(url: str) -> None:
    status, body = post(url, {"queries": ["velm tower", "bells"], "topk": 3, "return_scores": True})
    assert status == 200
    first, second = body["result"]
    assert first[0]["document"] == CORPUS[0] and second[0]["document"] == CORPUS[2]
    scores = [row["score"] for row in first]
    assert scores == sorted(scores, reverse=True) and all(isinstance(score, float) for score in scores)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_without_scores_every_query_gets_its_own_documents(url: str, count: int) -> None:
    """The reference server fails for one and for three queries, and answers two with the first one's documents."""
    queries = ["velm tower", "harwick market", "oakham bells"][:count]
    status, body = post(url, {"queries": queries, "topk": 1})
    assert status == 200 and body == {"result": [[CORPUS[number]] for number in range(count)]}


@pytest.mark.parametrize("top_k", [None, 0])
def test_no_number_of_documents_is_the_server_s_own(url: str, top_k: int | None) -> None:
    _, body = post(url, {"queries": ["town"], "topk": top_k})
    assert len(body["result"][0]) == 2


def test_fewer_hits_than_asked_for_are_a_shorter_list(url: str) -> None:
    _, body = post(url, {"queries": ["bells", "zebra", "", "!!! (z:q^^ [x TO"], "topk": 50})
    assert [len(rows) for rows in body["result"]] == [1, 0, 0, 0]


def test_a_passage_without_a_title_keeps_its_contents(url: str) -> None:
    _, body = post(url, {"queries": ["title here"], "topk": 1})
    assert body["result"][0] == [CORPUS[3]]


@pytest.mark.parametrize(
    "body",
    [
        {}, [], {"queries": "velm"}, {"queries": [1]}, {"queries": [None]}, {"queries": ["a"], "topk": -1},
        {"queries": ["a"], "topk": MAX_TOP_K + 1}, {"queries": ["a"], "topk": "three"},
        {"queries": ["a"] * (MAX_QUERIES + 1)},
        {"queries": ["a" * (MAX_QUERY_CHARS + 1)]}, {"queries": ["a"], "return_scores": "perhaps"}, b"{", b"\xff",
    ],
)  # fmt: skip
def test_a_request_of_another_shape_is_refused(url: str, body: Any) -> None:
    assert post(url, body)[0] in (400, 422)


def test_a_request_that_is_too_long_is_refused_unread(url: str) -> None:
    assert post(url, b"{}", **{"Content-Length": str(MAX_BODY + 1)})[0] == 413


def test_health_and_metrics(url: str, index: TextIndex) -> None:
    post(url, {"queries": ["velm", "oakham"]})
    assert json.loads(get(url, "/health")) == {
        "status": "ok",
        "retrieve": {"backend": "text-index", "fingerprint": index.fingerprint},
    }
    text = get(url, "/metrics")
    assert 'search_requests_total{path="/retrieve",status="200"}' in text
    assert "search_queries_total" in text and "search_pending_queries 0.0" in text


def test_a_token_is_asked_for_everywhere_but_at_the_health_check(index: TextIndex) -> None:
    with served(index, token="sesame") as url:
        assert post(url, {"queries": ["velm"]})[0] == 401
        assert post(url, {"queries": ["velm"]}, Authorization="Bearer sesamf")[0] == 401
        assert post(url, {"queries": ["velm"]}, Authorization="Bearer sesame")[0] == 200
        assert json.loads(get(url, "/health"))["status"] == "ok"
        assert "unauthorised" in get(url, "/metrics")


class Slow:
    name, fingerprint = "slow", "1"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.running, self.most = seconds, 0, 0

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        if query == "broken":
            raise SearchError(FailureKind.BAD_RESPONSE, "no")
        return [TextHit(query, "text", score=1.0)]


def at_once(url: str, work: Callable[[Retriever], Any]) -> Any:
    async def run() -> Any:
        retriever = Retriever(url)
        try:
            return await work(retriever)
        finally:
            await retriever.close()

    return asyncio.run(run())


def test_work_is_bounded_and_what_cannot_wait_is_refused() -> None:
    backend = Slow(0.2)

    async def work(retriever: Retriever) -> list[Any]:
        return await asyncio.gather(*(retriever.search(str(i), 1) for i in range(20)), return_exceptions=True)

    with served(backend, concurrency=4, waiting=8) as url:
        outcomes = at_once(url, work)
        assert json.loads(get(url, "/health"))["status"] == "ok"
    refused = [outcome for outcome in outcomes if isinstance(outcome, SearchError)]
    assert backend.most == 4 and len(refused) == 8
    assert {(error.failure.kind, error.retry_after) for error in refused} == {(FailureKind.UNAVAILABLE, 1.0)}
    answered = [(number, hits[0].title) for number, hits in enumerate(outcomes) if isinstance(hits, list)]
    assert len(answered) == 12 and all(str(number) == title for number, title in answered)


def test_a_search_that_takes_too_long_is_given_up() -> None:
    backend = Slow(5.0)
    with served(backend, timeout_s=0.2) as url:
        start = time.monotonic()
        status, body = post(url, {"queries": ["a"]})
        assert status == 504 and body["error"]["kind"] == "timeout" and time.monotonic() - start < 2
        assert backend.running == 0
        assert "search_pending_queries 0.0" in get(url, "/metrics")


def test_a_backend_that_fails_is_a_typed_answer() -> None:
    with served(Slow(0.0)) as url:
        status, body = post(url, {"queries": ["fine", "broken"]})
    assert status == 500 and body["error"]["kind"] == "bad_response"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "source").mkdir()
    for number, size in enumerate([(40, 40), (300, 200), (90, 500), (64, 64)]):
        Image.effect_noise(size, 60 + number).convert("RGB").save(folder / "source" / f"{number}.png")
    build_image_index(folder / "source", folder / "index", progress=False)
    return ImageIndex.open(folder / "index")


@pytest.mark.parametrize("path", ["", "/", "/image_search"])
def test_pictures_are_looked_up_as_without_a_server(pictures: ImageIndex, path: str) -> None:
    query = ImageQuery(Image.effect_noise((300, 200), 61).convert("RGB"))
    direct = pictures.search_now(query.image, 3)

    async def work(url: str) -> Any:
        service = ImageService(url)
        try:
            return await service.search(query, 3)
        finally:
            await service.close()

    with served(None, image=pictures) as url:
        served_hits = asyncio.run(work(url + path))
        assert json.loads(get(url, "/health"))["image_search"]["backend"] == "image-index"
        assert post(url, {"queries": ["a"]})[0] == 404
    assert [(hit.title, hit.url, hit.score) for hit in served_hits] == [
        (hit.title, hit.url, hit.score) for hit in direct
    ]
    for mine, theirs in zip(served_hits, direct, strict=True):
        assert mine.thumbnail.tobytes() == theirs.thumbnail.tobytes()  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    "body",
    [
        {}, {"image": 3}, {"image": "no base64!"}, {"image": "aGVsbG8="}, {"image": ""}, {"image": "aGVsbG8=", "k": 0},
        {"image": "aGVsbG8=", "k": MAX_TOP_K + 1},
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(pictures: ImageIndex, body: Any) -> None:
    with served(None, image=pictures) as url:
        assert post(url, body, "/image_search")[0] == 422


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"hits": []}, []),
        ({"hits": [{"title": "a", "thumbnail": "???"}, {"title": 3, "url": 4, "score": "x"}, {}]}, ["a", "", ""]),
        ({}, None),
        ([], None),
        ({"hits": [3]}, None),
        ({"hits": None}, None),
    ],
)
def test_another_s_answers_are_hits_or_a_bad_response(body: Any, expected: list[str] | None) -> None:
    async def run() -> Any:
        async with serving(response(json.dumps(body).encode(), Content_Type="application/json")) as site:
            service = ImageService(f"http://127.0.0.1:{site.port}")
            try:
                return [hit.title for hit in await service.search(ImageQuery(Image.new("RGB", (4, 4))), 3)]
            except SearchError as error:
                assert error.failure.kind is FailureKind.BAD_RESPONSE
                return None
            finally:
                await service.close()

    assert asyncio.run(run()) == expected


def test_our_client_and_our_server_understand_each_other(url: str, tmp_path: Path) -> None:
    hits = at_once(url, lambda retriever: retriever.search("velm tower", 3))
    assert (hits[0].title, hits[0].text, hits[0].id) == ('"Velm"', "Velm is a town with a tower.", "0")


def test_passages_over_http_are_those_of_the_index(tmp_path: Path) -> None:
    rows = [
        {"text": "velm first\nsecond line"},
        {"text": "velm one line"},
        {"contents": "velm alone"},
        {"contents": '"velm"\r\nwith\r\nbreaks'},
        {"title": "velm\nof two lines", "text": "x\r\ny"},
        {"title": '"velm"', "text": 'says "no"', "url": "https://a.example", "id": 7},
        {"title": "velm title alone", "text": ""},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_text_index(tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    index = TextIndex.open(tmp_path / "index")
    with served(index) as url:
        over_http = at_once(url, lambda retriever: retriever.search("velm", 10))
    direct = index.search_now("velm", 10)
    assert over_http == direct and len(direct) == len(rows)
    assert {(hit.title, hit.text) for hit in direct} >= {
        ("", "velm first\nsecond line"),
        ('"velm"', "with\r\nbreaks"),
        ("velm of two lines", "x\r\ny"),
    }


def test_the_command_serves_an_index_until_it_is_told_to_end(index: TextIndex, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, CORPUS)))
    build_text_index(tmp_path / "corpus.jsonl", tmp_path / "index", progress=False)
    port = free_port()
    command = [sys.executable, "-m", "mmsearch_trl.commands.main", "serve", "retriever"]
    command += ["--bm25", str(tmp_path / "index"), "--port", str(port), "--top_k", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"text-index at http://127.0.0.1:{port}/retrieve\n"
        deadline = time.monotonic() + 60
        while True:
            try:
                assert post(f"http://127.0.0.1:{port}", {"queries": ["bells"]}) == (200, {"result": [[CORPUS[2]]]})
                break
            except aiohttp.ClientConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        process.terminate()
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retriever"], "name the index that is served"),
        (["retriever", "--bm25", "/nowhere", "--encoder", "e5"], "--encoder is the encoder of --dense"),
        (["retriever", "--bm25", "/nowhere"], "search.text.path: /nowhere does not exist"),
        (["images", "--index", "/nowhere"], "search.image.path: /nowhere does not exist"),
        (["retriever", "--bm25", "/nowhere", "--host", "0.0.0.0"], "set MMSEARCH_RETRIEVER_TOKEN in the environment"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMSEARCH_RETRIEVER_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 1
    assert message in capsys.readouterr().err
