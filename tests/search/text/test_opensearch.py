"""Search in an OpenSearch index by its own client, against a stand-in for the server that counts words in common."""

import asyncio
import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from misbehaving import Answer, response, serving
from search.text.stand_in import standing_in

from mmsearch_trl.core.errors import SearchError, SearchLost, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.text.opensearch import OpenSearch, OpenSearchConfig


CORPUS = [
    {"id": "0", "contents": '"Velm"\nVelm is a town with a tower.'},
    {"id": "1", "contents": '"Harwick"\nHarwick is a town with a market.'},
    {"id": "2", "contents": '"Oakham"\nOakham casts bells.'},
]
CONTENTS = {"wiki": {"mappings": {"properties": {"id": {"type": "keyword"}, "contents": {"type": "text"}}}}}
SEARCH = "/wiki/_search?allow_partial_search_results=false&preference=mmsearch"
VARIABLES = ("OPENSEARCH_TOKEN", "OPENSEARCH_USER", "OPENSEARCH_PASSWORD")


@dataclass
class Index:
    """A stand-in, as the API reference of OpenSearch 3 describes these calls."""

    mapping: Any = field(default_factory=lambda: CONTENTS)
    rows: list[dict[str, Any]] = field(default_factory=lambda: CORPUS)
    authorization: str | None = None
    asked: list[Any] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    answer: Any = None

    def __call__(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        self.asked.append((method, path, body))
        self.headers.append(headers)
        if headers.get("authorization") != self.authorization:
            return 401, {"error": "Unauthorized"}
        if not path.startswith("/wiki/"):
            return 404, {"error": {"type": "index_not_found_exception", "reason": "no such index"}, "status": 404}
        if (method, path) == ("GET", "/wiki/_mapping"):
            return 200, self.mapping
        assert (method, path) == ("POST", SEARCH)
        if self.answer is not None:
            return 200, self.answer
        [(name, match)] = body["query"]["match"].items()
        words = set(match["query"].lower().split())
        found = [(len(words & set(row[name].lower().split())), row) for row in self.rows]
        best = sorted((pair for pair in found if pair[0]), key=lambda pair: -pair[0])[: body["size"]]
        hits = [{"_index": "wiki", "_id": f"_{n}", "_score": float(n), "_source": row} for n, row in best]
        shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
        total = {"total": {"value": len(hits), "relation": "eq"}, "max_score": None, "hits": hits}
        return 200, {"took": 1, "timed_out": False, "_shards": shards, "hits": total} | self.more


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return Index()


@pytest.fixture
def url(index: Index) -> Iterator[str]:
    with standing_in(index) as server:
        yield server


def search(url: str, query: str = "velm tower town", k: int = 3, index: str = "wiki") -> Any:
    """Hits, or the failure."""

    async def run() -> Any:
        backend = OpenSearch(url, index)
        try:
            return await backend.search(query, k)
        except SearchError as error:
            return error.failure
        finally:
            await backend.close()

    return asyncio.run(run())


def test_passages_come_best_first(index: Index, url: str) -> None:
    first, second = search(url)
    assert first == TextHit('"Velm"', "Velm is a town with a tower.", score=2.0, id="0")
    assert second.id == "1" and search(url, "zebra") == [] and len(search(url, k=1)) == 1
    assert index.asked[1] == (
        "POST",
        SEARCH,
        {"size": 3, "query": {"match": {"contents": {"query": "velm tower town"}}}},
    )


def test_text_with_a_title_is_searched_where_there_are_no_contents(index: Index, url: str) -> None:
    index.mapping = {"wiki": {"mappings": {"properties": {"title": {"type": "text"}, "text": {"type": "text"}}}}}
    index.rows = [{"title": "Velm", "text": "a town", "url": "http://velm"}]
    assert search(url, "town") == [TextHit("Velm", "a town", "http://velm", 1.0, "_1")]


@pytest.mark.parametrize(
    "mapping",
    [
        {"wiki": {"mappings": {"properties": {"body": {"type": "text"}}}}},
        {"wiki": {"mappings": {"properties": {"contents": {"type": "keyword"}}}}},
        {"wiki": {"mappings": {}}},
        {**CONTENTS, "wiki2": {"mappings": {"properties": {"text": {"type": "text"}}}}},
        {},
    ],
)
def test_an_index_without_text_is_told_before_anything_runs(mapping: Any, index: Index, url: str) -> None:
    index.mapping = mapping
    runtime = build_runtime(SearchConfig(text=OpenSearchConfig(url=url, index="wiki")))
    with pytest.raises(SearchLost, match="opensearch cannot be used: the index wiki has no text field contents"):
        asyncio.run(runtime.check())
    runtime.close()


def test_no_such_index(url: str) -> None:
    failure = search(url, index="other")
    assert (
        failure.kind is FailureKind.BLOCKED and failure.message == "the index other is not there, or may not be read"
    )


@pytest.mark.parametrize("more", [{"timed_out": True}, {"_shards": {"total": 2, "successful": 1, "failed": 1}}])
def test_half_an_answer_is_a_failure(more: dict[str, Any], index: Index, url: str) -> None:
    """It would be kept, and given for the whole one ever after."""
    index.more = more
    assert search(url).kind is FailureKind.UNAVAILABLE


@pytest.mark.parametrize(
    "answer",
    [
        [], {}, {"timed_out": False}, {"timed_out": False, "_shards": {"failed": 0}},
        {"timed_out": False, "_shards": {"failed": 0}, "hits": {"hits": [3]}},
        {"timed_out": False, "_shards": {"failed": 0}, "hits": {"hits": [{"_id": "1", "_score": 1.0, "_source": {}}]}},
        {"timed_out": False, "_shards": {"failed": 0}, "hits": {"hits": [{"_id": "1", "_score": 1.0}]}},
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_a_bad_response(answer: Any, index: Index, url: str) -> None:
    index.answer = answer
    assert search(url).kind is FailureKind.BAD_RESPONSE


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OPENSEARCH_TOKEN": "sesame"}, "Bearer sesame"),
        ({"OPENSEARCH_USER": "me", "OPENSEARCH_PASSWORD": "sesame"}, "Basic bWU6c2VzYW1l"),
    ],
)
def test_what_the_server_wants_is_read_from_the_environment(
    variables: dict[str, str], expected: str, index: Index, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.authorization = expected
    failure = search(url)
    assert failure.kind is FailureKind.KEY_REFUSED
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert len(search(url)) == 2


def test_a_user_without_a_password_is_told(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSEARCH_USER", "me")
    with pytest.raises(ValueError, match=r"search\.text\.url: .*OPENSEARCH_PASSWORD is not"):
        build_runtime(SearchConfig(text=OpenSearchConfig(url="http://a:9200", index="wiki")))


def test_a_recipe_chooses_it(url: str) -> None:
    runtime = build_runtime(SearchConfig(text=OpenSearchConfig(url=url, index="wiki", top_k=1)))

    async def run() -> Any:
        await runtime.check()
        observation = await runtime.text_search("velm tower")
        await runtime.disconnect()
        return observation

    observation = asyncio.run(run())
    assert observation.backend == "opensearch" and len(observation.hits) == 1
    runtime.close()


def test_an_address_that_is_none_is_named(index: Index) -> None:
    with pytest.raises(UserError, match=r"search\.text\.url: .* is no address"):
        build_runtime(SearchConfig(text=OpenSearchConfig(url="a:9200", index="wiki")))


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "opensearchpy":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'mmsearch-trl\[opensearch\]"):
        OpenSearch("http://a", "wiki")


def test_another_index_or_corpus_has_other_answers(index: Index) -> None:
    backends = [OpenSearch("http://a", "wiki"), OpenSearch("http://a", "news")]
    backends.append(OpenSearch("http://a", "wiki", corpus="2018"))
    assert len({backend.fingerprint for backend in backends}) == 3


def test_many_searches_at_once_and_again_after_a_close(index: Index, url: str) -> None:
    async def run() -> None:
        backend = OpenSearch(url, "wiki")
        first = await asyncio.gather(*(backend.search("velm tower", 3) for _ in range(30)))
        await backend.close()
        assert [await backend.search("velm tower", 3)] * 30 == first
        await backend.close()

    asyncio.run(run())


def failing(answer: Answer, *, patience_s: float = 5.0) -> tuple[SearchError, list[str]]:
    """What a search in a server that gives this answer to everything raises; with the paths that were asked."""

    async def run() -> tuple[SearchError, list[str]]:
        async with serving(answer) as site:
            backend = OpenSearch(f"http://127.0.0.1:{site.port}", "wiki")
            try:
                async with asyncio.timeout(patience_s):
                    await backend.search("velm", 3)
            except SearchError as error:
                return error, site.requests
            finally:
                await backend.close()
        raise AssertionError("the search was answered")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("401 Unauthorized", FailureKind.KEY_REFUSED),
        ("403 Forbidden", FailureKind.KEY_REFUSED),
        ("404 Not Found", FailureKind.BLOCKED),
        ("408 Request Timeout", FailureKind.TIMEOUT),
        ("429 Too Many Requests", FailureKind.RATE_LIMITED),
        ("500 Internal Server Error", FailureKind.UNAVAILABLE),
        ("503 Service Unavailable", FailureKind.UNAVAILABLE),
        ("504 Gateway Timeout", FailureKind.TIMEOUT),
    ],
)
def test_a_refusal_is_typed_and_asked_once(status: str, kind: FailureKind, index: Index) -> None:
    error, asked = failing(response(b'{"error": "page text"}', status=status, Content_Type="application/json"))
    assert error.failure.kind is kind and len(asked) == 1 and "page text" not in error.failure.message


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_a_mapping_of_another_shape_is_a_bad_response(body: bytes, index: Index) -> None:
    error, _ = failing(response(body, Content_Type="application/json"))
    assert error.failure.kind is FailureKind.BAD_RESPONSE


def test_a_redirect_does_not_carry_the_key_to_another_host(
    index: Index, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSEARCH_TOKEN", "sesame")
    failing(response(status="307 Temporary Redirect", Location=f"{url}/wiki/_mapping"))
    assert "sesame" not in str(index.headers)


def test_a_server_that_is_not_there_is_unavailable(index: Index) -> None:
    async def port() -> int:
        async with serving(response()) as site:
            return site.port

    failure = search(f"http://127.0.0.1:{asyncio.run(port())}")
    assert failure.kind is FailureKind.UNAVAILABLE and "is not there" in failure.message


def test_an_abandoned_search_ends_at_once(index: Index) -> None:
    async def never(write: Any) -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        failing(never, patience_s=0.2)
