"""Search in a Qdrant collection, against a stand-in for its three REST calls that really compares vectors."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search.text.encoders import WORDS, save_encoder
from search.text.stand_in import standing_in

from mmsearch_trl.core.errors import SearchError, SearchLost
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.qdrant import QdrantSearch


PASSAGES = [" ".join(random.Random(number).choices(WORDS, k=8)) for number in range(60)]


@dataclass
class Collection:
    """A stand-in, as the OpenAPI of Qdrant 1.17 describes these calls."""

    vectors: np.ndarray
    config: Any
    payloads: list[Any] = field(default_factory=lambda: [{"title": "T", "text": text} for text in PASSAGES])
    key: str | None = None
    asked: list[Any] = field(default_factory=list)
    answer: Any = None

    def __call__(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        self.asked.append((method, path, body))
        if headers.get("api-key") != self.key:
            return 401, {"status": {"error": "Must provide an API key"}}
        if not path.startswith("/collections/wiki"):
            return 404, {"status": {"error": "Not found: Collection doesn't exist!"}, "time": 0.0}
        if (method, path) == ("GET", "/collections/wiki"):
            return self._ok({"status": "green", "points_count": 60, "config": {"params": {"vectors": self.config}}})
        if (method, path) == ("POST", "/collections/wiki/points/scroll"):
            points = [{"id": n, "payload": payload} for n, payload in enumerate(self.payloads[: body["limit"]])]
            return self._ok({"points": points, "next_page_offset": None})
        assert (method, path) == ("POST", "/collections/wiki/points/query")
        assert body.get("using") == (None if "size" in self.config else next(iter(self.config)))
        if self.answer is not None:
            return 200, self.answer
        scores = self.vectors @ np.asarray(body["query"], np.float32)
        best = np.argsort(-scores, kind="stable")[: body["limit"]].tolist()
        assert body["with_payload"] is True
        points = [{"id": n, "version": 0, "score": float(scores[n]), "payload": self.payloads[n]} for n in best]
        return self._ok({"points": points})

    @staticmethod
    def _ok(result: Any) -> tuple[int, Any]:
        return 200, {"result": result, "status": "ok", "time": 0.001}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder(save_encoder(tmp_path_factory.mktemp("models") / "tiny-e5"))


@pytest.fixture
def collection(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> Collection:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    return Collection(encoder.passages(PASSAGES), {"size": 32, "distance": "Cosine"})


@pytest.fixture
def url(collection: Collection) -> Iterator[str]:
    with standing_in(collection) as server:
        yield f"{server}/collections/wiki"


def search(url: str, encoder: TextEncoder, query: str = "word3 word4", k: int = 5) -> Any:
    """Hits, or the failure."""

    async def run() -> Any:
        backend = QdrantSearch(url, encoder)
        try:
            return await backend.search(query, k)
        except SearchError as error:
            return error.failure
        finally:
            await backend.close()

    return asyncio.run(run())


def test_the_nearest_passages_come_first(url: str, encoder: TextEncoder) -> None:
    scores = encoder.passages(PASSAGES) @ encoder.queries(["word3 word4"])[0]
    expected = np.argsort(-scores)[:5].tolist()
    hits = search(url, encoder)
    assert [hit.id for hit in hits] == [str(n) for n in expected]
    assert [hit.score for hit in hits] == pytest.approx([float(scores[n]) for n in expected], abs=1e-5)
    assert hits[0] == TextHit("T", PASSAGES[expected[0]], score=hits[0].score, id=str(expected[0]))


def test_a_collection_is_looked_at_once(collection: Collection, url: str, encoder: TextEncoder) -> None:
    async def run() -> None:
        backend = QdrantSearch(url, encoder)
        for query in ("word1", "word2", "word3"):
            await backend.search(query, 3)
        await backend.close()

    asyncio.run(run())
    assert [path.removeprefix("/collections/wiki") for _, path, _ in collection.asked] == [
        "", "/points/scroll", *["/points/query"] * 3,
    ]  # fmt: skip


def test_a_vector_with_a_name_is_named(collection: Collection, url: str, encoder: TextEncoder) -> None:
    collection.config = {"dense": {"size": 32, "distance": "Dot"}}
    assert len(search(url, encoder)) == 5
    assert collection.asked[-1][2]["using"] == "dense"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"size": 768, "distance": "Cosine"}}, "has vectors of 768 numbers, and .*tiny-e5 makes 32"),
        ({"config": {"a": {"size": 32}, "b": {"size": 32}}}, "does not have one vector per point"),
        ({"config": {}}, "does not have one vector per point"),
        ({"payloads": []}, "is empty"),
        ({"payloads": [{"page": "a"}]}, "payloads that hold neither `contents` nor `text`"),
        ({"payloads": [None]}, "payloads that hold neither `contents` nor `text`"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    change: dict[str, Any], message: str, collection: Collection, url: str, encoder: TextEncoder
) -> None:
    for name, value in change.items():
        setattr(collection, name, value)
    runtime = build_runtime(SearchConfig(text_qdrant=url, text_encoder=encoder.name))
    with pytest.raises(SearchLost, match=rf"qdrant cannot be used: the collection wiki .*{message}"):
        asyncio.run(runtime.check())
    runtime.close()


def test_no_such_collection(url: str, encoder: TextEncoder) -> None:
    failure = search(url.replace("wiki", "other"), encoder)
    assert failure.kind is FailureKind.BLOCKED
    assert failure.message == "the collection other is not there, or may not be read"


def test_the_key_is_read_from_the_environment(
    collection: Collection, url: str, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.key = "sesame"
    assert search(url, encoder).kind is FailureKind.KEY_REFUSED
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    assert len(search(url, encoder)) == 5
    assert "sesame" not in QdrantSearch(url, encoder).fingerprint


@pytest.mark.parametrize(
    "answer",
    [
        [], {}, {"result": None}, {"result": []}, {"result": {"points": None}}, {"result": {"points": [3]}},
        {"result": {"points": [{"id": 1, "score": 1.0}]}},
        {"result": {"points": [{"id": 1, "score": "x", "payload": {}}]}},
        {"result": {"points": [{"id": 1, "score": 1.0, "payload": None}]}},
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_a_bad_response(
    answer: Any, collection: Collection, url: str, encoder: TextEncoder
) -> None:
    collection.answer = answer
    assert search(url, encoder).kind is FailureKind.BAD_RESPONSE


def test_a_recipe_chooses_it(url: str, encoder: TextEncoder) -> None:
    runtime = build_runtime(SearchConfig(text_qdrant=url, text_encoder=encoder.name, text_top_k=4))
    asyncio.run(runtime.check())
    observation = asyncio.run(runtime.text_search("word3 word4"))
    assert observation.backend == "qdrant" and len(observation.hits) == 4
    runtime.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_qdrant": "http://a:6333/collections/wiki"}, r"search\.text_qdrant needs search\.text_encoder"),
        (
            {"text_qdrant": "http://a:6333/wiki", "text_encoder": "ENCODER"},
            r"search\.text_qdrant: .* is no collection",
        ),
        ({"text_qdrant": "http://a:6333/collections/wiki", "text_encoder": "/nowhere"}, r"search\.text_encoder: "),
        ({"text_encoder": "/nowhere"}, r"neither search\.text_dense nor search\.text_qdrant is set"),
    ],
)
def test_what_a_recipe_lacks_is_named(values: dict[str, str], message: str, encoder: TextEncoder) -> None:
    given: Any = {key: encoder.name if value == "ENCODER" else value for key, value in values.items()}
    with pytest.raises(ValueError, match=message):
        build_runtime(SearchConfig(**given))


def test_another_encoder_or_corpus_has_other_answers(encoder: TextEncoder, tmp_path: Path) -> None:
    other = TextEncoder(save_encoder(tmp_path / "tiny-e5", seed=1))
    url = "http://a:6333/collections/wiki"
    backends = [QdrantSearch(url, encoder), QdrantSearch(url, other), QdrantSearch(url, encoder, corpus="2018")]
    assert len({backend.fingerprint for backend in backends}) == 3
