"""`POST /rerank` as Search-R1's clients see it, and reranking within `/retrieve`."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search.over_http import get, post, served
from search.text.encoders import WORDS, save_cross_encoder

from mmsearch_trl.commands.main import main
from mmsearch_trl.search.index_build import build_text_index
from mmsearch_trl.search.requests import MAX_PASSAGE_CHARS, MAX_TOP_K
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.search.text.reranker import Reranker


ROWS = [
    {"id": str(number), "contents": f'"Title {number}"\nword1 {" ".join(WORDS[number : number + 5])}'}
    for number in range(20)
]


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    return Reranker(save_cross_encoder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> TextIndex:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    build_text_index(folder / "corpus.jsonl", folder / "index", progress=False)
    return TextIndex.open(folder / "index")


@pytest.fixture(scope="module")
def url(index: TextIndex, reranker: Reranker) -> Iterator[str]:
    with served(index, reranker=reranker) as address:
        yield address


def best(reranker: Reranker, query: str, rows: list[Any], k: int) -> list[Any]:
    """What a query's own rows come to."""
    order = asyncio.run(reranker.best(query, [row["contents"] for row in rows], k))
    return [{"document": rows[place], "score": pytest.approx(score, abs=1e-4)} for place, score in order]


def rerank(url: str, **body: Any) -> tuple[int, Any]:
    return post(url, body, "/rerank")


def test_a_query_is_scored_against_its_own_documents(url: str, reranker: Reranker) -> None:
    """The reference server scores it against those of all queries, and answers with them."""
    queries, documents = ["word3 word4", "word9"], [ROWS[:8], ROWS[12:17]]
    status, body = rerank(url, queries=queries, documents=documents, rerank_topk=4, return_scores=True)
    assert status == 200
    expected = [best(reranker, query, rows, 4) for query, rows in zip(queries, documents, strict=True)]
    assert body["result"] == expected
    assert [row["document"]["id"] for row in body["result"][0]] != ["0", "1", "2", "3"]


def test_a_query_without_documents_keeps_its_place(url: str) -> None:
    """The reference server leaves it out, so that the next query's answer is taken for its."""
    _, body = rerank(url, queries=["word1", "word2", "word3"], documents=[[], [ROWS[5]], []], return_scores=True)
    assert [[row["document"]["id"] for row in rows] for rows in body["result"]] == [[], ["5"], []]
    assert rerank(url, queries=[], documents=[]) == (200, {"result": []})


def test_both_shapes_of_documents_come_back_as_retrieve_gives_them(url: str) -> None:
    """The reference server answers with strings, which its own client cannot read."""
    plain = {"id": 7, "contents": '"A"\nword1', "url": "http://a", "lang": None}
    for given in (plain, {"document": plain, "score": 3.5}):
        assert rerank(url, queries=["word1"], documents=[[given]]) == (200, {"result": [[plain]]})
        _, body = rerank(url, queries=["word1"], documents=[[given]], return_scores=True)
        [[row]] = body["result"]
        assert row["document"] == plain and isinstance(row["score"], float)


@pytest.mark.parametrize(("top_k", "expected"), [(None, 3), (0, 3), (1, 1), (50, 20)])
def test_the_number_of_documents(url: str, top_k: int | None, expected: int) -> None:
    _, body = rerank(url, queries=["word1"], documents=[ROWS], rerank_topk=top_k)
    assert len(body["result"][0]) == expected


def test_what_was_retrieved_can_be_reranked_by_another_request(url: str, reranker: Reranker) -> None:
    _, found = post(url, {"queries": ["word1 word7"], "topk": 6, "return_scores": True})
    _, body = rerank(url, queries=["word1 word7"], documents=found["result"], return_scores=True)
    rows = [row["document"] for row in found["result"][0]]
    assert len(rows) == 6 and body["result"] == [best(reranker, "word1 word7", rows, 3)]


@pytest.mark.parametrize(("wanted", "depth"), [({"topk_retrieval": 6}, 6), ({}, 10)])
def test_or_within_the_same_one(url: str, reranker: Reranker, wanted: dict[str, int], depth: int) -> None:
    _, found = post(url, {"queries": ["word1 word7"], "topk": depth})
    request = {"queries": ["word1 word7"], "topk_rerank": 2, "return_scores": True} | wanted
    status, body = post(url, request)
    assert status == 200 and body["result"] == [best(reranker, "word1 word7", found["result"][0], 2)]
    _, body = post(url, request | {"return_scores": False})
    assert body["result"] == [[row["document"] for row in best(reranker, "word1 word7", found["result"][0], 2)]]


@pytest.mark.parametrize(
    "body",
    [
        {}, {"queries": ["a"]}, {"documents": [[]]}, {"queries": ["a"], "documents": []},
        {"queries": ["a", "b"], "documents": [[ROWS[0]]]}, {"queries": "a", "documents": [[ROWS[0]]]},
        {"queries": ["a"], "documents": [ROWS[0]]}, {"queries": ["a"], "documents": [["text"]]},
        {"queries": ["a"], "documents": [[{"id": "1"}]]}, {"queries": ["a"], "documents": [[{"contents": 3}]]},
        {"queries": ["a"], "documents": [[{"document": "text"}]]}, {"queries": ["a"], "documents": [[None]]},
        {"queries": ["a"], "documents": [[]], "rerank_topk": -1},
        {"queries": ["a"], "documents": [[]], "rerank_topk": "three"},
        {"queries": ["a"], "documents": [[]], "rerank_topk": MAX_TOP_K + 1},
        {"queries": ["a"], "documents": [[ROWS[0]] * (MAX_TOP_K + 1)]},
        {"queries": ["a"], "documents": [[{"contents": "a" * (MAX_PASSAGE_CHARS + 1)}]]},
    ],
)  # fmt: skip
def test_a_request_of_another_shape_is_refused(url: str, body: Any) -> None:
    assert rerank(url, **body)[0] == 422


def test_without_a_reranker_it_is_said_what_is_needed(index: TextIndex) -> None:
    with served(index) as url:
        status, body = rerank(url, queries=["a"], documents=[[ROWS[0]]])
        assert status == 404 and "--reranker MODEL" in body["error"]["message"]
        status, body = post(url, {"queries": ["a"], "topk_rerank": 3})
        assert status == 422 and "--reranker MODEL" in body["error"]["message"]
        assert post(url, {"queries": ["a"], "topk": 3})[0] == 200


def test_a_reranker_can_be_served_alone(reranker: Reranker) -> None:
    with served(None, reranker=reranker) as url:
        assert rerank(url, queries=["word1"], documents=[[ROWS[0]]])[0] == 200
        health = json.loads(get(url, "/health"))
    assert health["rerank"] == {"backend": "reranker", "fingerprint": reranker.fingerprint}


def test_a_reranker_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "retriever", "--reranker", str(tmp_path)]) == 1
    assert f"the reranker '{tmp_path}' cannot be loaded" in capsys.readouterr().err
