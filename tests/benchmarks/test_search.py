"""What the search benchmark rests on: its corpus, its brute force, its report. Times need a machine of their own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.search.__main__ import main
from benchmarks.search.corpus import QUERY_WORDS, TITLE_WORDS, WORDS, queries_of, words, write_corpus
from benchmarks.search.encoder import drawn
from benchmarks.search.indexes import kinds
from benchmarks.search.load import LOADS, Load, Sample
from benchmarks.search.report import TITLES, slopes
from benchmarks.search.truth import by_vectors, by_words, joined, recall

from mmsearch_trl.search.index_build import build_text_index
from mmsearch_trl.search.text.bm25 import TextIndex


BACKENDS = {"bm25", "exact", "flat", "ivf", "hnsw", "hybrid"}


def test_words_are_distinct() -> None:
    assert len(set(words())) == len(words()) == 200_000


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    for name in ("small", "large", "other"):
        (tmp_path / name).mkdir()
    small, large = write_corpus(tmp_path / "small", 50, 0), write_corpus(tmp_path / "large", 12_000, 0)
    lines = large.file.read_text().splitlines()
    assert small.file.read_text().splitlines() == lines[:50] and len(lines) == 12_000
    assert write_corpus(tmp_path / "other", 50, 1).file.read_text() != small.file.read_text()
    rows = [json.loads(line) for line in (lines[0], lines[11_999])]
    assert [row["id"] for row in rows] == ["0", "11999"]
    title, text = rows[1]["contents"].split("\n")
    assert len(title.split()) == TITLE_WORDS and len(text.split()) == WORDS - TITLE_WORDS
    queries = queries_of(small, 20, 10_000, 0)
    assert len({query.text for query in queries}) == 20
    assert all(len(set(query.numbers)) == len(query.text.split()) == QUERY_WORDS for query in queries)


def test_brute_force_by_words_is_what_the_index_finds(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, 3000, 0)
    build_text_index(corpus.file, tmp_path / "index", progress=False)
    index, queries = TextIndex.open(tmp_path / "index"), queries_of(corpus, 50, 3000, 0)
    found = [[int(hit.id or -1) for hit in index.search_now(query.text, 10)] for query in queries]
    assert found == by_words(corpus, queries, 10)


def test_brute_force_by_vectors_and_recall() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(200, 8)).astype(np.float32), rng.normal(size=(5, 8)).astype(np.float32)
    wanted = by_vectors(vectors, queries, 4)
    assert wanted == [np.argsort(-row)[:4].tolist() for row in queries @ vectors.T]
    assert recall(wanted, wanted) == 1.0
    assert recall([[], *wanted[1:]], wanted) == 0.8
    assert joined([[1, 2, 3]], [[3, 4, 1]], 2) == [[1, 3]]


def test_drawn_vectors_are_spread_like_those_of_their_topic() -> None:
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(4, dtype=np.uint16), 500)
    centres = rng.normal(size=(4, 16))
    known = centres[topics] + 0.2 * rng.normal(size=(2000, 16))
    known = (known / np.linalg.norm(known, axis=1, keepdims=True)).astype(np.float32)
    found = drawn(known, topics, topics, rng)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for topic in range(4):
        mine, theirs = found[topics == topic], known[topics == topic]
        assert mine.mean(axis=0) @ theirs.mean(axis=0) > 0.9 * np.linalg.norm(theirs.mean(axis=0)) ** 2
        assert mine.std(axis=0).mean() == pytest.approx(theirs.std(axis=0).mean(), rel=0.15)


def test_what_a_sample_comes_to() -> None:
    sample = Sample(Load(2, queries=4), [0.1, 0.2, 0.3, 0.4, 0.5], seconds=1.0)
    assert sample.per_second == 20 and sample.ms(50) == pytest.approx(300)


def test_the_slope_is_that_of_a_power() -> None:
    def size(ms: float) -> dict:
        load = {name: {"ours": {"p50_ms": ms}, "plain": {"p50_ms": 2 * ms}} for name in LOADS}
        return {"backends": {name: {"load": load} for name in BACKENDS}}

    found = slopes({"1000": size(1.0), "10000": size(10.0), "100000": size(100.0)})
    assert set(found) == set(TITLES) and set(found["ivf"]) == set(LOADS)
    assert {slope for loads in found.values() for slope in loads.values()} == {1.0}
    assert slopes({"1000": size(1.0)}) == {}


def test_an_index_has_lists_by_the_size_of_the_corpus() -> None:
    assert [kinds(count)["ivf"] for count in (10**4, 10**5, 10**6)] == ["IVF128,SQ8", "IVF512,SQ8", "IVF1024,SQ8"]


@pytest.mark.slow
def test_a_small_run_reports_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench" / "search.json"
    main(["--quick", "--out", str(out)])
    report = json.loads(out.read_text())
    [size] = report["sizes"].values()
    assert set(size["backends"]) == BACKENDS and size["encoded"] == 200 and size["drawn"] == 100
    assert size["encode_ms_per_passage"] > 0
    for name, found in size["backends"].items():
        assert found["build_s"] > 0 and found["disk_mb"] > 0 and found["resident_mb"] > found["anonymous_mb"] > 0
        assert found["recall"] >= (0.98 if name not in ("ivf", "hnsw") else 0.8)
        assert set(found["load"]) == set(LOADS)
        for load in found["load"].values():
            for side in (load["plain"], load["ours"]):
                assert side["p95_ms"] >= side["p50_ms"] > 0 and side["qps"] > 0 and side["requests"] > 0
            for ratio in (load["p50_ratio"], load["p95_ratio"], load["qps_ratio"]):
                assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    assert size["plain"]["recall"] >= 0.98 and size["plain"]["resident_mb"] > 0
    assert [path.name for path in out.parent.iterdir()] == ["search.json"]
    printed = capsys.readouterr().out
    main(["--table", str(out)])
    table = capsys.readouterr().out
    assert table.strip() in printed and table.count("| vectors, exact |") == 3
    main(["--quick", "--out", str(out)])
    assert "measured" not in capsys.readouterr().out, "what a report has is not measured again"
