"""Search in a Qdrant collection: an embedded one, and a server that answers over HTTP from an embedded one."""

import asyncio
import builtins
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaving import Answer, response, serving
from qdrant_client import QdrantClient, models
from search.text.encoders import WORDS, save_encoder
from search.text.stand_in import standing_in

from mmsearch_trl.core.errors import SearchError, SearchLost, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.index_build import build_dense_index
from mmsearch_trl.search.text.dense import DenseIndex
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.qdrant import QdrantConfig, QdrantSearch


PASSAGES = [" ".join(random.Random(number).choices(WORDS, k=8)) for number in range(60)]
PAYLOADS = [{"title": "T", "text": text} for text in PASSAGES]
COSINE = models.VectorParams(size=32, distance=models.Distance.COSINE)


@dataclass
class RestOf:
    """The REST calls of a server (OpenAPI of Qdrant 1.17) over an embedded one."""

    client: QdrantClient
    key: str | None = None
    asked: list[str] = field(default_factory=list)

    def __call__(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        if headers.get("api-key") != self.key:
            return 401, {"status": {"error": "Must provide an API key"}}
        _, _, name, *call = path.split("/")
        self.asked.append(f"{method} {'/'.join(call)}".strip())
        if self.asked[-1] == "GET exists":
            result: Any = {"exists": self.client.collection_exists(name)}
        elif self.asked[-1] == "GET":
            result = self.client.get_collection(name).model_dump(mode="json")
        elif self.asked[-1] == "POST points/scroll":
            points, _ = self.client.scroll(name, limit=body["limit"], with_payload=body["with_payload"])
            result = {"points": [point.model_dump(mode="json") for point in points], "next_page_offset": None}
        else:
            assert self.asked[-1] == "POST points/query"
            sent = models.QueryRequest.model_validate(body)
            assert sent.limit is not None and sent.with_payload is True
            found = self.client.query_points(name, query=sent.query, using=sent.using, limit=sent.limit)
            result = found.model_dump(mode="json")
        return 200, {"result": result, "status": "ok", "time": 0.001}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder(save_encoder(tmp_path_factory.mktemp("models") / "tiny-e5"))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


def fill(client: QdrantClient, name: str, vectors: Any, payloads: Any, config: Any = COSINE) -> None:
    client.create_collection(name, vectors_config=config)
    if len(payloads):
        client.upload_collection(name, vectors=vectors, ids=range(len(payloads)), payload=payloads)


@pytest.fixture(scope="module")
def folder(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded Qdrant: `wiki`, and collections with which something is wrong."""
    place, vectors = tmp_path_factory.mktemp("qdrant"), encoder.passages(PASSAGES)
    client = QdrantClient(path=str(place))
    fill(client, "wiki", vectors, PAYLOADS)
    fill(client, "named", {"dense": vectors}, PAYLOADS, {"dense": COSINE})
    fill(client, "two", {"a": vectors[:1], "b": vectors[:1]}, PAYLOADS[:1], {"a": COSINE, "b": COSINE})
    fill(client, "none", [{}], PAYLOADS[:1], {})
    fill(client, "wide", np.ones((1, 768)), PAYLOADS[:1], models.VectorParams(size=768, distance=COSINE.distance))
    fill(client, "empty", vectors[:0], [])
    fill(client, "pages", vectors[:1], [{"page": "a"}])
    fill(client, "bare", vectors[:1], [None])
    fill(client, "spoiled", vectors[:2], [{"text": PASSAGES[0]}, {"text": 3}])
    client.close()
    return place


@pytest.fixture
def rest(folder: Path) -> Iterator[RestOf]:
    client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    yield RestOf(client)
    client.close()


@pytest.fixture
def url(rest: RestOf) -> Iterator[str]:
    with standing_in(rest) as server:
        yield server


@pytest.fixture(params=["folder", "server"])
def location(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("folder" if request.param == "folder" else "url"))


def search(location: str, encoder: TextEncoder, collection: str = "wiki", k: int = 5) -> Any:
    """Hits, or the failure."""

    async def run() -> Any:
        backend = QdrantSearch(location, collection, encoder)
        try:
            return await backend.search("word3 word4", k)
        except SearchError as error:
            return error.failure
        finally:
            await backend.close()

    return asyncio.run(run())


@pytest.mark.parametrize("collection", ["wiki", "named"])
def test_the_nearest_passages_come_first(location: str, collection: str, encoder: TextEncoder) -> None:
    scores = encoder.passages(PASSAGES) @ encoder.queries(["word3 word4"])[0]
    expected = np.argsort(-scores)[:5].tolist()
    hits = search(location, encoder, collection)
    assert [hit.id for hit in hits] == [str(n) for n in expected]
    assert [hit.score for hit in hits] == pytest.approx([float(scores[n]) for n in expected], abs=1e-5)
    assert hits[0] == TextHit("T", PASSAGES[expected[0]], score=hits[0].score, id=str(expected[0]))


def test_a_collection_is_looked_at_once(rest: RestOf, url: str, encoder: TextEncoder) -> None:
    async def run() -> None:
        backend = QdrantSearch(url, "wiki", encoder)
        for query in ("word1", "word2", "word3"):
            await backend.search(query, 3)
        await backend.close()

    asyncio.run(run())
    assert rest.asked == ["GET exists", "GET", "POST points/scroll", *["POST points/query"] * 3]


def test_many_searches_at_once_and_again_after_a_close(location: str, encoder: TextEncoder) -> None:
    async def run() -> list[Any]:
        backend = QdrantSearch(location, "wiki", encoder)
        first = await asyncio.gather(*(backend.search(f"word{n}", 3) for n in range(30)))
        await backend.close()
        again = [await backend.search(f"word{n}", 3) for n in range(3)]
        await backend.close()
        # Queries that come together are encoded together, which changes the last bits of the scores.
        assert [[hit.id for hit in hits] for hits in again] == [[hit.id for hit in hits] for hits in first[:3]]
        return first

    assert [len(hits) for hits in asyncio.run(run())] == [3] * 30


@pytest.mark.parametrize(
    ("collection", "message"),
    [
        ("other", "is not there"),
        ("wide", "has vectors of 768 numbers, and .*tiny-e5 makes 32"),
        ("two", "does not have one vector per point"),
        ("none", "does not have one vector per point"),
        ("empty", "is empty"),
        ("pages", "payloads that hold neither `contents` nor `text`"),
        ("bare", "payloads that hold neither `contents` nor `text`"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    location: str, collection: str, message: str, encoder: TextEncoder
) -> None:
    config = QdrantConfig(location=location, collection=collection, encoder=encoder.name)
    runtime = build_runtime(SearchConfig(text=config))
    with pytest.raises(SearchLost, match=rf"qdrant cannot be used: the collection {collection} .*{message}"):
        asyncio.run(runtime.check())
    asyncio.run(runtime.disconnect())
    runtime.close()


def test_a_point_without_a_passage_is_a_bad_response(location: str, encoder: TextEncoder) -> None:
    assert search(location, encoder, "spoiled").kind is FailureKind.BAD_RESPONSE


def test_a_folder_that_another_has_open_is_told(rest: RestOf, folder: Path, encoder: TextEncoder) -> None:
    failure = search(str(folder), encoder)
    assert failure.kind is FailureKind.BLOCKED
    assert "is open in another process: for several, start a Qdrant server" in failure.message


def test_a_damaged_folder_is_told(tmp_path: Path, encoder: TextEncoder) -> None:
    (tmp_path / "meta.json").write_text("{")
    failure = search(str(tmp_path), encoder)
    assert failure.kind is FailureKind.BLOCKED and "cannot be opened by Qdrant's client" in failure.message


def test_the_key_is_read_from_the_environment(
    rest: RestOf, url: str, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest.key = "sesame"
    assert search(url, encoder).kind is FailureKind.KEY_REFUSED
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    with pytest.warns(UserWarning, match="insecure connection"):
        assert len(search(url, encoder)) == 5
    assert "sesame" not in QdrantSearch(url, "wiki", encoder).fingerprint


def failing(answer: Answer, encoder: TextEncoder, *, patience_s: float = 5.0) -> tuple[SearchError, list[str]]:
    """What a search in a server that gives this answer to everything raises; with the paths that were asked."""

    async def run() -> tuple[SearchError, list[str]]:
        async with serving(answer) as site:
            backend = QdrantSearch(f"http://127.0.0.1:{site.port}", "wiki", encoder)
            try:
                async with asyncio.timeout(patience_s):
                    await backend.search("word3", 3)
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
    ],
)
def test_a_refusal_is_typed_and_asked_once(status: str, kind: FailureKind, encoder: TextEncoder) -> None:
    error, asked = failing(response(b'{"status": {"error": "page text"}}', status=status), encoder)
    assert error.failure.kind is kind and len(asked) == 1
    assert error.failure.message == f"the service answered HTTP {status[:3]}"


@pytest.mark.parametrize(("header", "pause"), [("7", 7.0), ("soon", None)])
def test_a_pause_that_is_asked_for_is_told(header: str, pause: float | None, encoder: TextEncoder) -> None:
    error, _ = failing(response(b"{}", status="429 Too Many Requests", Retry_After=header), encoder)
    assert error.failure.kind is FailureKind.RATE_LIMITED and error.retry_after == pause


def test_a_redirect_does_not_carry_the_key_to_another_host(
    rest: RestOf, url: str, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    with pytest.warns(UserWarning, match="insecure connection"):
        error, _ = failing(response(status="307 Temporary Redirect", Location=f"{url}/stolen"), encoder)
    assert error.failure.kind is FailureKind.BLOCKED and rest.asked == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"result": null}', b'{"result": 3}', b"[" * 100_000])
def test_an_answer_of_another_shape_is_a_bad_response(body: bytes, encoder: TextEncoder) -> None:
    error, _ = failing(response(body, Content_Type="application/json"), encoder)
    assert error.failure.kind is FailureKind.BAD_RESPONSE


def test_a_server_that_is_not_there_is_unavailable(encoder: TextEncoder) -> None:
    async def port() -> int:
        async with serving(response()) as site:
            return site.port

    failure = search(f"http://127.0.0.1:{asyncio.run(port())}", encoder)
    assert failure.kind is FailureKind.UNAVAILABLE and "is not there" in failure.message


def test_an_abandoned_search_ends_at_once(encoder: TextEncoder) -> None:
    async def never(write: Any) -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        failing(never, encoder, patience_s=0.2)


def test_a_recipe_chooses_it(location: str, encoder: TextEncoder) -> None:
    config = QdrantConfig(location=location, collection="wiki", encoder=encoder.name, top_k=4)
    runtime = build_runtime(SearchConfig(text=config))

    async def run() -> Any:
        await runtime.check()
        observation = await runtime.text_search("word3 word4")
        await runtime.disconnect()
        return observation

    observation = asyncio.run(run())
    assert observation.backend == "qdrant" and len(observation.hits) == 4
    runtime.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"location": "a:6333"}, r"search\.text\.location: a:6333 is neither an address nor the folder"),
        ({"location": "http://me:sesame@a"}, r"search\.text\.location: the address holds a name or a password"),
        ({"encoder": "/nowhere"}, r"search\.text\.encoder: "),
    ],
)
def test_a_value_that_does_not_fit_is_named(values: dict[str, Any], message: str, encoder: TextEncoder) -> None:
    given: dict[str, Any] = {"location": "http://a:6333", "collection": "wiki", "encoder": encoder.name} | values
    with pytest.raises(UserError, match=message):
        build_runtime(SearchConfig(text=QdrantConfig(**given)))


def test_without_the_client_it_says_what_to_install(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "qdrant_client":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'mmsearch-trl\[qdrant\]"):
        QdrantSearch("http://a", "wiki", encoder)


def test_another_encoder_collection_or_corpus_has_other_answers(encoder: TextEncoder, tmp_path: Path) -> None:
    other = TextEncoder(save_encoder(tmp_path / "tiny-e5", seed=1))
    backends = [
        QdrantSearch("http://a:6333", "wiki", encoder),
        QdrantSearch("http://a:6333", "wiki", other),
        QdrantSearch("http://a:6333", "news", encoder),
        QdrantSearch("http://a:6333", "wiki", encoder, corpus="2018"),
    ]
    assert len({backend.fingerprint for backend in backends}) == 4


def test_a_collection_filled_as_the_documentation_says_answers_like_the_index(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    rows = [{"id": f"p{n}", "title": "T", "text": text} for n, text in enumerate(PASSAGES)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_dense_index(tmp_path / "corpus.jsonl", tmp_path / "dense", model=encoder.name, progress=False)
    text = (Path(__file__).parents[3] / "docs" / "search.md").read_text()
    [block] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "qdrant_client" in block]
    block = block.replace("indexes/dense", str(tmp_path / "dense"))
    block = block.replace('QdrantClient("http://127.0.0.1:6333")', f"QdrantClient(path={str(tmp_path / 'qdrant')!r})")
    exec(block + "client.close()\n", {})
    index = DenseIndex.open(tmp_path / "dense")
    [expected] = index.search_now(["word3 word4"], 5)
    hits = search(str(tmp_path / "qdrant"), encoder)
    assert [(hit.id, hit.title, hit.text) for hit in hits] == [(hit.id, hit.title, hit.text) for hit in expected]
