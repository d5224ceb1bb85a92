"""What strangers send to the search server: refused at once, small and alike, and never a 500."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search.over_http import get, post, served
from search.text.encoders import save_cross_encoder

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search import server_guard
from mmsearch_trl.search.index_build import build_text_index
from mmsearch_trl.search.requests import MAX_PAIRS, MAX_QUERIES
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.search.text.reranker import Reranker


HALF, HALF_BYTES = b"\\ud83d", b"\xed\xa0\xbd"


class Echo:
    """Finds the query itself."""

    name, fingerprint = "echo", "1"

    def __init__(self, hit: TextHit | None = None) -> None:
        self.hit = hit

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        if query == "refused":
            raise SearchError(FailureKind.INVALID_QUERY, "not this one")
        if query == "defect":
            raise KeyError("a defect")
        return [self.hit or TextHit("", query, score=1.0)]


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    return Reranker(save_cross_encoder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def url(reranker: Reranker) -> Iterator[str]:
    with served(Echo(), reranker=reranker) as address:
        yield address


def refused(answer: tuple[int, Any]) -> tuple[int, str]:
    """Status and kind of a refusal, which has to be small and of the one shape."""
    status, body = answer
    assert 400 <= status < 500 or status == 503
    assert list(body) == ["error"] and sorted(body["error"]) == ["kind", "message"]
    assert len(json.dumps(body)) < 500
    return status, body["error"]["kind"]


BAD: dict[str, Any] = {"null": None, "number": 7, "truth": True, "list": ["fine"], "object": {"query": "fine"}}
BAD |= {"too long": "a" * 3000, "refused by the backend": "refused"}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_query_that_cannot_be_asked_does_not_cost_the_others_their_answers(url: str, bad: Any) -> None:
    status, body = post(url, {"queries": ["one", bad, "two", bad], "topk": 1})
    assert status == 200
    [one, none, two, none_either] = body["result"]
    assert [rows[0]["contents"] for rows in (one, two)] == ["one", "two"] and none == none_either == []
    kind = "invalid_query" if bad == "refused" else "invalid_request"
    assert [error and error["kind"] for error in body["errors"]] == [None, kind, None, kind]
    assert len(json.dumps(body["errors"])) < 500
    assert refused(post(url, {"queries": [bad, bad]})) == (422, kind)
    assert "errors" not in post(url, {"queries": ["one", "two"]})[1]


@pytest.mark.parametrize("bad", list(BAD.values())[:-1], ids=list(BAD)[:-1])
def test_nor_where_documents_are_reranked(url: str, bad: Any) -> None:
    documents = [[{"contents": "word1"}], [{"contents": "word2"}]]
    status, body = post(url, {"queries": ["word1", bad], "documents": documents}, "/rerank")
    assert status == 200 and body["result"] == [[{"contents": "word1"}], []]
    assert body["errors"][0] is None and body["errors"][1]["kind"] == "invalid_request"


def test_a_backend_that_fails_for_one_query_is_no_empty_list(url: str) -> None:
    status, body = post(url, {"queries": ["fine", "defect"]})
    assert status == 500 and "result" not in body


LISTS = b'{"queries":["a"],"documents":[%s]}'
REFUSED: dict[str, tuple[str, bytes, int, str]] = {
    "many lists": ("/rerank", LISTS % b",".join([b"[{}]"] * 200_000), 413, "too_large"),
    "one long list": ("/rerank", LISTS % (b"[" + b",".join([b"{}"] * 100_000) + b"]"), 422, "invalid_request"),
    "wrong rows": ("/rerank", json.dumps({"queries": ["a"] * 512, "documents": [[{}] * 100] * 512}).encode(), 422, ""),
    "too many lists": ("/rerank", json.dumps({"queries": [], "documents": [[]] * 513}).encode(), 422, ""),
    "numbers": ("/retrieve", b'{"queries":[%s]}' % b",".join([b"1"] * 90_000), 422, "invalid_request"),
    "millions of numbers": ("/retrieve", b'{"queries":[%s]}' % b",".join([b"1"] * 1_500_000), 413, "too_large"),
    "a long query": ("/retrieve", json.dumps({"queries": ["a" * 3_000_000]}).encode(), 422, "invalid_request"),
    "a long name": ("/retrieve", json.dumps({"a" * 3_000_000: 1}).encode(), 422, "invalid_request"),
    "NaN": ("/retrieve", b'{"queries":["a"],"topk":NaN}', 400, "invalid_json"),
    "Infinity": ("/retrieve", b'{"queries":["a"],"topk":Infinity}', 400, "invalid_json"),
    "-Infinity in a document": ("/rerank", LISTS % b'[{"contents":"a","x":-Infinity}]', 400, "invalid_json"),
    "1e999": ("/rerank", LISTS % b'[{"contents":"a","x":[1e999]}]', 400, "invalid_json"),
    "a number of 5,000 digits": ("/retrieve", b'{"queries":["a"],"topk":' + b"9" * 5000 + b"}", 400, "invalid_json"),
    "half an emoji as a number": ("/retrieve", b'{"queries":["a"],"topk":"' + HALF + b'"}', 422, "invalid_request"),
    "half an emoji as a truth": ("/retrieve", b'{"queries":["a"],"return_scores":"' + HALF + b'"}', 422, ""),
    "half an emoji in bytes": ("/retrieve", b'{"queries":["' + HALF_BYTES + b'"]}', 400, "invalid_json"),
    "deep": ("/retrieve", b"[" * 90_000, 400, "invalid_json"),
    "deep objects": ("/rerank", b'{"a":' * 90_000, 400, "invalid_json"),
    "UTF-16": ("/retrieve", '{"queries":["a"]}'.encode("utf-16"), 400, "invalid_json"),
    "nothing": ("/retrieve", b"", 400, "invalid_json"),
    "null": ("/retrieve", b"null", 422, "invalid_request"),
    "no such path": ("/nothing", b"{}", 404, "not_found"),
    "a query that the backend refuses": ("/retrieve", b'{"queries":["refused"]}', 422, "invalid_query"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_small_and_alike(url: str, name: str) -> None:
    path, body, status, kind = REFUSED[name]
    start = time.monotonic()
    found = refused(post(url, body, path))
    assert found[0] == status and kind in found[1] and time.monotonic() - start < 3
    assert post(url, {"queries": ["fine"]})[0] == 200


def test_a_refusal_repeats_nothing_that_was_sent(url: str) -> None:
    for body in (
        {"queries": [{"secret": "sesame"}]},
        {"queries": "sesame"},
        {"queries": ["sesame"], "topk": "sesame"},
    ):
        assert "sesame" not in json.dumps(post(url, body)[1])
    assert "sesame" not in json.dumps(post(url, b'{"queries": sesame')[1])


def test_half_an_emoji_costs_no_query_its_answer(url: str) -> None:
    body = b'{"queries":["fine","a ' + HALF + b' b","' + HALF + rb'","\ud83d\ude00","\\\ud83d"]}'
    status, answer = post(url, body)
    assert status == 200
    assert [rows[0]["contents"] for rows in answer["result"]] == ["fine", "a  b", "", "\U0001f600", "\\"]
    body = LISTS % (b'[{"contents":"a ' + HALF + b'","' + HALF + b'":"' + HALF + b'"}]')
    assert post(url, body, "/rerank") == (200, {"result": [[{"contents": "a ", "": ""}]]})


def test_documents_are_bounded_in_their_sum(url: str) -> None:
    row = {"contents": "a"}
    many = [[row] * 11] * MAX_QUERIES
    status, body = post(url, {"queries": ["a"] * MAX_QUERIES, "documents": many}, "/rerank")
    assert status == 422 and f"{MAX_PAIRS} are taken" in body["error"]["message"]


@pytest.mark.parametrize(("depth", "status"), [(1, 200), (32, 200), (33, 422), (800, 422), (5000, 400)])
def test_a_document_has_its_depth(url: str, depth: int, status: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opening * depth + b"1" + closing * depth
        assert post(url, LISTS % (b'[{"contents":"a","x":' + deep + b"}]"), "/rerank")[0] == status


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["queries", "topk", "documents", "rerank_topk", "return_scores", "topk_rerank", "x"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.sampled_from(["/retrieve", "/rerank"]), st.dictionaries(KEYS, VALUES | st.lists(st.text(max_size=3))))
def test_nothing_that_a_client_sends_is_a_500(url: str, path: str, body: dict[str, Any]) -> None:
    status, answer = post(url, json.dumps(body).encode(), path)
    assert status == 200 or refused((status, answer))


@pytest.mark.parametrize("score", [math.nan, math.inf, "0.5"])
def test_a_backend_s_wrong_hits_are_a_typed_failure(score: Any) -> None:
    with served(Echo(TextHit("a", "b", score=score))) as url:
        status, body = post(url, {"queries": ["a"], "return_scores": True})
    assert status == 500 and body["error"]["kind"] == "bad_response"


def test_a_defect_is_told_in_the_same_shape() -> None:
    with served(Echo()) as url:
        assert post(url, {"queries": ["defect"]}) == (
            500,
            {"error": {"kind": "internal", "message": "the server has failed: KeyError"}},
        )


def test_half_an_emoji_in_a_passage_is_left_out() -> None:
    with served(Echo(TextHit("a\ud83d", "b\ud83d", "http://a\ud83d", id="\ud83d1"))) as url:
        [[row]] = post(url, {"queries": ["a"]})[1]["result"]
    assert row == {"id": "1", "contents": "a\nb", "url": "http://a"}


def sent(url: str, *parts: bytes | Iterator[bytes], wait: float = 10.0) -> bytes:
    """What comes back, until the server closes."""
    host, _, port = url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        for part in parts:
            for piece in [part] if isinstance(part, bytes) else part:
                connection.sendall(piece)
        while received := connection.recv(65_536):
            answer += received
    return answer


HEAD = b"POST /retrieve HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_half_a_body_is_held_for_its_time_and_no_longer(http: str) -> None:
    with served(Echo(), http=http, body_timeout_s=0.5) as url:
        start = time.monotonic()
        answer = sent(url, HEAD + b"Content-Length: 1000\r\n\r\n{")
        assert b" 408 " in answer and b'"too_slow"' in answer and time.monotonic() - start < 4
        assert post(url, {"queries": ["fine"]})[0] == 200


def test_a_body_that_comes_in_drops_is_cut_off() -> None:
    def drops() -> Iterator[bytes]:
        for _ in range(30):
            time.sleep(0.1)
            yield b" "

    with served(Echo(), body_timeout_s=0.5) as url:
        with suppress(ConnectionError):  # where it is cut off while it sends
            assert b" 408 " in sent(url, HEAD + b"Content-Length: 1000\r\n\r\n", drops())
        text = get(url, "/metrics")
    assert 'status="408"' in text


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_half_a_head_is_held_for_its_time_and_no_longer(http: str, before: bytes) -> None:
    with served(Echo(), http=http, head_s=0.3) as url:
        start = time.monotonic()
        answer = sent(url, before + b"POST /retrieve HTTP/1.1\r\nHost: a\r\n")
        assert time.monotonic() - start < 4 and (b" 200 " in answer) == bool(before)
        assert sent(url) == b"" and post(url, {"queries": ["fine"]})[0] == 200


def test_a_request_that_takes_longer_is_not_cut_off() -> None:
    class Slow(Echo):
        async def search(self, query: str, k: int) -> Sequence[TextHit]:
            await asyncio.sleep(0.9)
            return await super().search(query, k)

    with served(Slow(), head_s=0.3) as url:
        assert post(url, {"queries": ["fine"]})[0] == 200


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("head", [b"", b"Content-Length: 10\r\n"])
def test_a_body_in_pieces_is_refused_however_long_it_says_it_is(
    http: str, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_guard, "_LINGER_S", 0.3)
    with served(Echo(), http=http) as url:
        answer = sent(url, HEAD + head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", wait=8)
        assert answer.split(b" ")[1] in (b"400", b"411")
        assert post(url, {"queries": ["fine"]})[0] == 200


def test_a_body_that_is_longer_than_may_be_reads_why(url: str) -> None:
    assert refused(post(url, b" " * 50_000_000)) == (413, "too_large")
    assert refused(post(url, b" " * 200_000, "/nothing")) == (413, "too_large")


def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "MAX_HELD", 1_000_000)
    with served(Echo()) as url:
        assert refused(post(url, b" " * 1_500_000)) == (503, "busy")
        assert post(url, {"queries": ["fine"]})[0] == 200


def test_paths_that_nobody_serves_are_counted_as_one(url: str) -> None:
    for number in range(20):
        post(url, b"{}", f"/{number}")
    post(url, {})
    text = get(url, "/metrics")
    assert 'path="other",status="404"' in text and 'path="/7"' not in text
    assert 'search_requests_total{path="/retrieve",status="422"}' in text


def test_a_query_that_breaks_a_batch_breaks_itself_alone(tmp_path: Path) -> None:
    from mmsearch_trl.search.calls.batching import Batched

    started = threading.Event()

    def lengths(texts: Sequence[str]) -> list[int]:
        started.wait(5)
        if any(text == "bad" for text in texts):
            raise ValueError("bad")
        return [len(text) for text in texts]

    async def run() -> list[Any]:
        batched: Batched[str, int] = Batched(lengths, 8)
        calls = [asyncio.ensure_future(batched(text)) for text in ["a", "bb", "bad", "ccc"]]
        await asyncio.sleep(0.05)
        started.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second, bad, last = asyncio.run(run())
    assert (first, second, last) == (1, 2, 3) and isinstance(bad, ValueError)


def test_a_text_index_behind_it_answers_whatever_is_asked(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "velm"}))
    build_text_index(tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    with served(TextIndex.open(tmp_path / "index")) as url:
        queries = ["velm", "", "\0", "\ufffe", "a" * 2000, "\U0010ffff", " velm\u0000"]
        status, body = post(url, {"queries": queries})
    assert status == 200 and [len(rows) for rows in body["result"]] == [1, 0, 0, 0, 0, 0, 1]
