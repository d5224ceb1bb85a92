"""Dense indexes: exact and by FAISS, built, killed and built on, opened and searched."""

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search.text.encoders import WORDS, save_encoder

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.index_build import build_dense_index, build_text_index
from mmsearch_trl.search.text import dense, dense_build
from mmsearch_trl.search.text.dense import FAISS, VECTORS, DenseIndex
from mmsearch_trl.search.text.dense_config import DenseConfig
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.hybrid import HybridConfig


COUNT = 700


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"id": str(n), "contents": f'"Title {n}"\n{" ".join(rng.choices(WORDS, k=12))}'} for n in range(COUNT)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def exact(encoder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DenseIndex:
    out = tmp_path_factory.mktemp("index") / "exact"
    built = build_dense_index(corpus, out, model=str(encoder), progress=False)
    assert built.count == COUNT
    return DenseIndex.open(out)


def passages(corpus: Path) -> list[str]:
    return [json.loads(line)["contents"] for line in corpus.read_text().splitlines()]


def search(index: DenseIndex, query: str, k: int = 5) -> list[TextHit]:
    return asyncio.run(index.search(query, k))


def test_exact_search_is_brute_force(exact: DenseIndex, encoder: Path, corpus: Path) -> None:
    model, texts = TextEncoder(encoder), passages(corpus)
    scores = model.passages(texts) @ model.queries(["word3 word7"])[0]
    hits = search(exact, "word3 word7", 10)
    assert [hit.id for hit in hits] == [str(n) for n in np.argsort(-np.round(scores, 6), kind="stable")[:10]]
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:10], abs=1e-5)
    title, _, text = texts[int(hits[0].id or "")].partition("\n")
    assert (hits[0].title, hits[0].text) == (title, text)


def test_a_passage_finds_itself(exact: DenseIndex, corpus: Path) -> None:
    for number, text in list(enumerate(passages(corpus)))[:20]:
        assert search(exact, text, 1)[0].id == str(number)


def test_there_are_never_more_hits_than_passages(exact: DenseIndex) -> None:
    assert len(search(exact, "word1", 10_000)) == COUNT and search(exact, "word1", 0) == []


def test_questions_that_come_together_are_encoded_together(exact: DenseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = exact._encoder.queries

    def noting(texts: Sequence[str]) -> Any:
        sizes.append(len(texts))
        time.sleep(0.02)
        return encode(texts)

    monkeypatch.setattr(exact._encoder, "queries", noting)

    async def run() -> list[list[TextHit]]:
        return await asyncio.gather(*(exact.search(f"word{n}", 3) for n in range(64)))

    together = asyncio.run(run())
    assert len(sizes) <= 8 and sum(sizes) == 64
    monkeypatch.undo()
    assert [[hit.id for hit in hits] for hits in together] == [
        [hit.id for hit in search(exact, f"word{n}", 3)] for n in range(64)
    ]


@pytest.mark.parametrize("size", [1, 7, 700])
def test_vectors_are_read_once_for_queries_that_come_together(
    size: int, exact: DenseIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces in which they are read, the answers are those of each query alone."""
    alone = [exact.search_now([f"word{n}"], n)[0] for n in range(64)]
    batches: list[int] = []
    nearest = exact._nearest

    def noting(queries: Any, k: int) -> Any:
        batches.append(len(queries))
        time.sleep(0.02)
        return nearest(queries, k)

    monkeypatch.setattr(exact, "_nearest", noting)
    monkeypatch.setattr(dense, "_ROWS", size)

    async def run() -> list[list[TextHit]]:
        return await asyncio.gather(*(exact.search(f"word{n}", n) for n in range(64)))

    together = asyncio.run(run())
    for mine, theirs in zip(together, alone, strict=True):
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=2e-6)
    assert len(batches) <= 8 and sum(batches) == 64


@pytest.mark.parametrize(
    ("kind", "least"), [("Flat", 1.0), ("HNSW32", 0.98), ("IVF16,Flat", 0.8), ("IVF16,SQ8", 0.75)]
)
def test_faiss_indexes_find_what_exact_search_finds(
    kind: str, least: float, exact: DenseIndex, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    build_dense_index(corpus, tmp_path / "index", model=str(encoder), kind=kind, progress=False)
    index = DenseIndex.open(tmp_path / "index")
    assert not (tmp_path / "index" / VECTORS).exists() and len(index) == COUNT
    found = wanted = 0
    for number in range(50):
        query = f"word{number} word{number + 1}"
        mine = {hit.id for hit in search(exact, query)}
        hits = search(index, query)
        found, wanted = found + len(mine & {hit.id for hit in hits}), wanted + len(mine)
        scores = [hit.score for hit in hits if hit.score is not None]
        assert len(scores) == len(hits) and scores == sorted(scores, reverse=True)
    assert found / wanted >= least


def test_a_list_that_runs_out_gives_fewer_hits_and_no_other_passage(
    encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """FAISS fills its answers up with -1, which in Python is the last passage."""
    build_dense_index(corpus, tmp_path / "index", model=str(encoder), kind="IVF64,Flat", progress=False)
    index = DenseIndex.open(tmp_path / "index")
    hits = search(index, "word1", 500)
    assert 0 < len(hits) < 500 and len({hit.id for hit in hits}) == len(hits)


def build_slowly(corpus: Path, out: Path, encoder: Path, encodes: Connection) -> None:
    encode = TextEncoder.passages

    def slow(self: TextEncoder, texts: Sequence[str]) -> Any:
        encodes.send(len(texts))
        time.sleep(0.2)
        return encode(self, texts)

    TextEncoder.passages = slow
    build_dense_index(corpus, out, model=str(encoder), progress=False)


def test_a_build_that_was_killed_goes_on_where_it_was(
    exact: DenseIndex, encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks = multiprocessing.get_context("fork")  # which need not import PyTorch
    says, encodes = forks.Pipe(duplex=False)
    process = forks.Process(target=build_slowly, args=(corpus, tmp_path / "index", encoder, encodes))
    process.start()
    for _ in range(2):
        assert says.poll(60) and says.recv() > 0
    process.kill()
    process.join()
    assert not (tmp_path / "index").exists()
    encoded: list[int] = []
    encode = TextEncoder.passages

    def noting(self: TextEncoder, texts: Sequence[str]) -> Any:
        encoded.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "passages", noting)
    build_dense_index(corpus, tmp_path / "index", model=str(encoder), progress=False)
    assert 0 < sum(encoded) < COUNT
    index = DenseIndex.open(tmp_path / "index")
    assert index.fingerprint == exact.fingerprint
    assert [hit.id for hit in search(index, "word5")] == [hit.id for hit in search(exact, "word5")]


def test_another_corpus_or_encoder_begins_anew(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".index.partial"
    dense_build._begin(partial, corpus, TextEncoder(encoder))
    begun = json.loads((partial / "progress.json").read_text())
    (partial / "progress.json").write_text(json.dumps(begun | {"done": 500}))
    assert dense_build._begin(partial, corpus, TextEncoder(encoder)).done == 500
    other = TextEncoder(save_encoder(tmp_path / "other", seed=1))
    assert dense_build._begin(partial, corpus, other).done == 0
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text('{"text": "word1"}\n')
    assert dense_build._begin(partial, shorter, other).count == 1


def test_what_is_wrong_is_said_before_anything_is_encoded(
    encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "passages", lambda self, texts: pytest.fail("something was encoded"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "word1"}\n{"txt": "word2"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: key 'text' is missing"):
        build_dense_index(bad, tmp_path / "index", model=str(encoder), progress=False)
    with pytest.raises(ValueError, match="FAISS knows no index 'Nonsense7'"):
        build_dense_index(corpus, tmp_path / "index", model=str(encoder), kind="Nonsense7", progress=False)
    (tmp_path / "index").mkdir()
    with pytest.raises(ValueError, match="exists"):
        build_dense_index(corpus, tmp_path / "index", model=str(encoder), progress=False)


def test_an_index_is_opened_with_its_own_encoder_only(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    build_dense_index(corpus, tmp_path / "index", model=str(encoder), progress=False)
    other = save_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="was built with encoder"):
        DenseIndex.open(tmp_path / "index", str(other))
    (tmp_path / "index" / VECTORS).unlink()
    np.save(tmp_path / "index" / VECTORS, np.zeros((3, 32), np.float32))
    with pytest.raises(ValueError, match="is damaged"):
        DenseIndex.open(tmp_path / "index")
    (tmp_path / "index" / FAISS).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no FAISS index"):
        DenseIndex.open(tmp_path / "index")


def test_words_and_meaning_are_joined_by_a_recipe(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    build_text_index(corpus, tmp_path / "text", progress=False)
    arguments = ["index", "dense", str(corpus), "--out", str(tmp_path / "dense"), "--model", str(encoder)]
    assert main(arguments) == 0
    both = HybridConfig(bm25=str(tmp_path / "text"), dense=str(tmp_path / "dense"), top_k=10)
    runtime = build_runtime(SearchConfig(text=both))
    observation = asyncio.run(runtime.text_search("word3 word7"))
    assert observation.backend == "hybrid" and len(observation.hits) == 10
    with pytest.raises(ValueError, match=r"search\.text\.path: .* does not exist"):
        build_runtime(SearchConfig(text=DenseConfig(path=str(tmp_path / "nowhere"))))
