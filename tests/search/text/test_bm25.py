import asyncio
import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tantivy
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.search.index_build import build_text_index
from mmsearch_trl.search.text import bm25_build
from mmsearch_trl.search.text.bm25 import TextIndex


ROWS = [
    {"id": "0", "contents": '"Bel Tor"\nBel Tor was founded in 1742.\nIts city is Calton.'},
    {"id": "1", "contents": '"Kor Ma"\nKor Ma was founded in 1801. Its city is Durham.'},
    {"title": "Tor Bel", "text": " Founded 1555, in Ashby.", "url": "https://t.example"},
    {"contents": "A line alone is a text."},
]


def source(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> TextIndex:
    folder = tmp_path_factory.mktemp("text")
    build_text_index(source(folder / "rows.jsonl", ROWS), folder / "index", progress=False)
    return TextIndex.open(folder / "index")


def test_the_passage_with_the_words_comes_first(index: TextIndex) -> None:
    hits = asyncio.run(index.search("who founded Kor Ma?", 2))
    assert hits[0].title == '"Kor Ma"'
    assert hits[0].text == "Kor Ma was founded in 1801. Its city is Durham."
    assert len(hits) == 2 and (hits[0].score or 0) > (hits[1].score or 0)


def test_the_first_line_of_contents_is_the_title_and_the_rest_the_text(index: TextIndex) -> None:
    hit = index.search_now("calton", 1)[0]
    assert (hit.title, hit.text) == ('"Bel Tor"', "Bel Tor was founded in 1742.\nIts city is Calton.")
    alone = index.search_now("line alone", 1)[0]
    assert (alone.title, alone.text) == ("", "A line alone is a text.")


def test_title_text_and_address_are_kept_to_the_blank(index: TextIndex) -> None:
    hit = index.search_now("ashby", 1)[0]
    assert (hit.title, hit.text, hit.url) == ("Tor Bel", " Founded 1555, in Ashby.", "https://t.example")


def test_words_match_by_stem_and_without_accents(index: TextIndex) -> None:
    assert index.search_now("FOUNDING in Cáltón", 1)[0].title == '"Bel Tor"'


@pytest.mark.parametrize("query", ["", "   ", "!!!", "zzzz", "\ud800", "\0", "。"])
def test_a_query_without_a_known_word_finds_nothing(index: TextIndex, query: str) -> None:
    assert index.search_now(query, 3) == []


@pytest.mark.parametrize("query", ["C++ [tor TO", '"tor', "words:tor AND ^^ (", "tor~2 *", "-tor", "ordinal:0 tor"])
def test_query_language_is_read_as_plain_words(index: TextIndex, query: str) -> None:
    assert {hit.title for hit in index.search_now(query, 3)} >= {'"Bel Tor"', "Tor Bel"}


@given(st.text(max_size=80), st.integers(-2, 10))
def test_any_query_gives_the_same_hits_again_and_never_raises(index: TextIndex, query: str, k: int) -> None:
    hits = index.search_now(query, k)
    assert hits == index.search_now(query, k) and len(hits) <= max(k, 0)


def test_a_very_long_query_is_cut(index: TextIndex) -> None:
    words = " ".join(f"w{number}" for number in range(100_000))
    assert index.search_now(f"calton {words}", 1)[0].title == '"Bel Tor"'
    assert index.search_now(f"{words} calton", 1) == []


def test_ties_are_broken_by_order_of_the_source(tmp_path: Path) -> None:
    rows = [{"title": str(number), "text": "same words"} for number in range(500)]
    build_text_index(source(tmp_path / "rows.jsonl", rows), tmp_path / "index", progress=False)
    assert [hit.title for hit in TextIndex.open(tmp_path / "index").search_now("words", 3)] == ["0", "1", "2"]


def test_building_twice_gives_the_same_hits_and_fingerprint(tmp_path: Path) -> None:
    rows = [{"text": f"word{number % 7} word{number % 11} word{number % 13}"} for number in range(400)]
    path = source(tmp_path / "rows.jsonl", rows)
    first = build_text_index(path, tmp_path / "1", progress=False)
    second = build_text_index(path, tmp_path / "2", progress=False)
    one, two = TextIndex.open(tmp_path / "1"), TextIndex.open(tmp_path / "2")
    assert first.fingerprint == second.fingerprint == one.fingerprint and len(one) == 400
    for number in range(13):
        assert one.search_now(f"word{number}", 10) == two.search_now(f"word{number}", 10)


def test_chinese_is_found_where_the_language_is_set(tmp_path: Path) -> None:
    path = source(tmp_path / "rows.jsonl", [{"text": "北京是中国的首都"}, {"text": "东京是日本的首都"}])
    build_text_index(path, tmp_path / "index", language="zh", progress=False)
    index = TextIndex.open(tmp_path / "index")
    assert index.search_now("日本首都", 1)[0].text == "东京是日本的首都"
    assert index.search_now("京", 5) and not index.search_now("狗", 5)


def index_of(folder: Path, rows: list[dict[str, str]], language: str = "en") -> TextIndex:
    folder.mkdir()
    build_text_index(source(folder / "rows.jsonl", rows), folder / "index", language=language, progress=False)
    return TextIndex.open(folder / "index")


def test_passages_and_questions_are_folded_alike(tmp_path: Path) -> None:
    names = ["Ame\u0301lie Poulain", "\uff30\uff59\uff34orch library", "Straße", "Sm\u00f8rrebr\u00f8d"]
    index = index_of(tmp_path / "en", [{"text": name} for name in names])
    for query, name in zip(["AMÉLIE", "pytorch", "STRASSE", "smorrebrod"], names, strict=True):
        assert [hit.text for hit in index.search_now(query, 2)] == [name]
    russian = index_of(tmp_path / "ru", [{"text": "Моско\u0301вский Кремль"}, {"text": "Чаи\u0306ковский"}], "ru")  # noqa: RUF001
    assert [hit.text for hit in russian.search_now("МОСКОВСКОГО", 2)] == ["Моско\u0301вский Кремль"]  # noqa: RUF001
    assert len(russian.search_now("чайковского", 2)) == 1


def test_latin_words_in_chinese_are_words(tmp_path: Path) -> None:
    rows = [{"text": "P y T o r c h t h r o c P y t o 字母表"}, {"text": "PyTorch 是一个很长很长的深度学习框架的名字"}]
    index = index_of(tmp_path / "zh", rows, "zh")
    assert index.search_now("PyTorch 是什么", 2)[0].text == rows[1]["text"]
    assert [hit.text for hit in index.search_now("pytorch", 2)] == [rows[1]["text"]]


@pytest.mark.parametrize("count", [64, 65, 200])
def test_of_a_long_question_the_rare_words_count(tmp_path: Path, count: int) -> None:
    words = [f"w{number}" for number in range(count)]
    rows = [{"text": " ".join(words)}] * 3 + [{"text": "Zanzibar lies far away"}]
    index = index_of(tmp_path / "long", rows)
    assert "Zanzibar lies far away" in [hit.text for hit in index.search_now(" ".join([*words, "Zanzibar"]), 4)]


@pytest.mark.parametrize(
    ("text", "language", "fitting"),
    [
        ("北京是中国的首都", "en", "zh"),
        ("東京は日本の首都です", "de", "ja"),
        ("서울은 대한민국의 수도이다", "zh", "ko"),
        ("Москва столица России", "en", "ru"),
        ("Moscow is the capital", "ru", "en"),
        ("Moscow is the capital", "zh", "en"),
        ("נחום הוא שם", "ar", "und"),
    ],
)
def test_a_corpus_in_another_script_than_its_language_is_refused(
    tmp_path: Path, text: str, language: str, fitting: str
) -> None:
    path = source(tmp_path / "rows.jsonl", [{"text": text}] * 3)
    with pytest.raises(ValueError, match=rf"rows.jsonl: .* of language '{language}'.* --language {fitting} "):
        build_text_index(path, tmp_path / "out" / "index", language=language, progress=False)
    assert list((tmp_path / "out").iterdir()) == []
    assert build_text_index(path, tmp_path / "any", language="und", progress=False).count == 3


def test_some_words_of_another_script_are_no_other_language(tmp_path: Path) -> None:
    english = index_of(tmp_path / "en", [{"text": "Beijing, in Chinese 北京, is the capital"}])
    assert english.search_now("北京", 1) and english.search_now("capitals", 1)
    assert index_of(tmp_path / "zh", [{"text": "用 Python API 写 search engine 的例子"}], "zh").search_now("python", 1)
    assert len(index_of(tmp_path / "no", [{"text": "1742 + 3 = 1745"}])) == 1


def test_an_index_whose_words_were_folded_otherwise_is_refused(tmp_path: Path) -> None:
    index_of(tmp_path / "i", ROWS)
    manifest = tmp_path / "i" / "index" / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["folding"]  # as earlier versions wrote it
    manifest.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="build it again with `mmsearch index text SOURCE"):
        TextIndex.open(tmp_path / "i" / "index")


def test_the_fingerprint_follows_the_folding_and_a_build_of_another_one_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path / "rows.jsonl", ROWS)
    first = build_text_index(path, tmp_path / "1", progress=False)
    bm25_build._begin(tmp_path / ".2.partial", path, "en")
    monkeypatch.setattr(bm25_build, "FOLDING", 99)
    index = bm25_build._begin(tmp_path / ".2.partial", path, "en")
    assert index.searcher().num_docs == 0
    assert build_text_index(path, tmp_path / "2", progress=False).fingerprint != first.fingerprint


def test_a_gzipped_source_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert build_text_index(path, tmp_path / "index", progress=False).count == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"title": "a"}', "rows.jsonl:3: key 'text' is missing"),
        ('{"contents": null}', "rows.jsonl:3: key 'contents' is missing"),
        ('{"text": ["a"]}', "rows.jsonl:3: key 'text' is list"),
        ('{"text": "  "}', "rows.jsonl:3: the passage is empty"),
        ("null", "rows.jsonl:3: a JSON object is needed"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_leaves_nothing_behind(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + row + "\n")
    with pytest.raises(ValueError, match=message):
        build_text_index(path, tmp_path / "out" / "index", progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_source_an_empty_one_and_an_unknown_language_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.jsonl: cannot be read"):
        build_text_index(tmp_path / "gone.jsonl", tmp_path / "index", progress=False)
    with pytest.raises(ValueError, match="no passage was found"):
        build_text_index(source(tmp_path / "empty.jsonl", []), tmp_path / "index", progress=False)
    with pytest.raises(ValueError, match=r"unknown language 'xx': choose one of .*en"):
        build_text_index(source(tmp_path / "r.jsonl", ROWS), tmp_path / "index", language="xx", progress=False)


def test_a_folder_without_index_or_with_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no text index"):
        TextIndex.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "image", "count": 1, "fingerprint": "x"}')
    with pytest.raises(ValueError, match="holds a image index where a text index is needed"):
        TextIndex.open(tmp_path)


KILLED = """
import sys, time
from mmsearch_trl.search.text import bm25_build
bm25_build.COMMIT_EVERY = 100
passage_of, seen = bm25_build.passage_of, 0
def slow(row):
    global seen
    seen += 1
    if seen % 50 == 0:
        print(seen, flush=True)
        time.sleep(0.1)
    return passage_of(row)
bm25_build.passage_of = slow
bm25_build.write_text_index(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_build_that_was_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = source(tmp_path / "c.jsonl", [{"title": f"t{i}", "text": f"word{i % 7} w{i}"} for i in range(1000)])
    whole = build_text_index(corpus, tmp_path / "whole", progress=False)
    code = "from pathlib import Path" + KILLED
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(corpus), str(tmp_path / "index")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 450:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial = tmp_path / ".index.partial"
    assert partial.is_dir() and not (tmp_path / "index").exists()
    kept = tantivy.Index.open(str(partial / "tantivy")).searcher().num_docs
    assert kept in (300, 400)
    added: list[object] = []
    monkeypatch.setattr(tantivy, "Document", lambda document=tantivy.Document: added.append(None) or document())
    resumed = build_text_index(corpus, tmp_path / "index", progress=False)
    assert len(added) == 1000 - kept and not partial.exists()
    assert (resumed.count, resumed.fingerprint) == (whole.count, whole.fingerprint) == (1000, whole.fingerprint)
    indexes = [TextIndex.open(tmp_path / name) for name in ("whole", "index")]
    for query in ("word3", "word1 w8", "w999 w0", "t5"):
        first, second = (index.search_now(query, 50) for index in indexes)
        assert first == second and first


def test_what_was_begun_for_another_corpus_is_not_gone_on_with(tmp_path: Path) -> None:
    corpus = source(tmp_path / "c.jsonl", [{"text": "old words"}])
    bm25_build._begin(tmp_path / ".index.partial", corpus, "en")
    source(corpus, [{"text": "quite new words"}, {"text": "and more"}])
    assert build_text_index(corpus, tmp_path / "index", progress=False).count == 2
    assert not (tmp_path / ".index.partial").exists()
