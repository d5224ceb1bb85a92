"""Corpora as they lie on people's disks."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from search.text.encoders import save_encoder

from mmsearch_trl.commands.main import main
from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.index.rows import BadRows, read_rows, usable
from mmsearch_trl.search.index_build import build_dense_index, build_image_index, build_text_index
from mmsearch_trl.search.text.bm25 import TextIndex


ROWS = [{"id": str(number), "text": f"word{number} and more"} for number in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    rows = [json.loads(line) for line in data.splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=700)
    return sink.getvalue().to_pybytes()


def zstd(data: bytes) -> bytes:
    """Two frames end to end, as `cat` makes them."""
    codec, middle = pyarrow.Codec("zstd"), data.index(b"\n", len(data) // 2) + 1
    return b"".join(codec.compress(part, asbytes=True) for part in (data[:middle], data[middle:]))


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "with a byte order mark and CRLF": lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"),
    "gzip": gzip.compress,
    "gzip, two members": lambda data: (
        gzip.compress(data[: data.index(b"\n") + 1]) + gzip.compress(data[data.index(b"\n") + 1 :])
    ),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
    "lz4": lambda data: pyarrow.Codec("lz4").compress(data, asbytes=True),
    "parquet": parquet,
}


@pytest.mark.parametrize("name", ["corpus", "corpus.jsonl", "corpus.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_a_corpus_is_read_whatever_it_is_called(form: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMS[form](LINES))
    rows = list(read_rows(tmp_path / name, BadRows()))
    assert [row.values for row in rows] == ROWS and [row.line for row in rows] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(LINES)[:-20], "cannot be read after line"),
        (zstd(LINES)[:-20], "cannot be read after line"),
        (lzma.compress(LINES)[:-20], "cannot be read after line"),
        (bz2.compress(LINES)[:-20], "cannot be read after line"),
        (parquet(LINES)[:-20], "cannot be read after line 0"),
        (b"PK\x03\x04 and more", "is a ZIP archive: unpack it"),
        ('{"text": "a"}'.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    ],
)
def test_a_corpus_that_is_damaged_or_of_another_kind_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"corpus.jsonl:? {message}") as raised:
        list(read_rows(tmp_path / "corpus.jsonl", BadRows("skip")))
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


def test_bad_rows_are_passed_over_and_counted(tmp_path: Path) -> None:
    bad = BadRows("skip")
    lines = ["{oops", '{"text": "fine"}', "[1]", '{"no": 1}', '{"text": 5}', '\ufeff{"text": "x"}', '{"text": "last"}']
    (tmp_path / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert list(usable(tmp_path / "c.jsonl", lambda row: row.text("text"), bad)) == ["fine", "x", "last"]
    assert bad.count == 4 and bad.first.startswith(f"{tmp_path / 'c.jsonl'}:1: not JSON")


def test_a_message_is_short_however_large_the_row(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"k" * 10_000 + str(number): 1 for number in range(100)}))
    with pytest.raises(ValueError, match=r"c.jsonl:1: key 'text' is missing") as raised:
        list(usable(tmp_path / "c.jsonl", lambda row: row.text("text"), BadRows()))
    assert len(str(raised.value)) < 1000 + len(str(tmp_path))


def test_every_kind_of_index_passes_bad_rows_over_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], emblem: Callable[..., Image.Image]
) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "word1"}\n{"text": " "}\n{oops\n{"text": "word2"}\n')
    text = build_text_index(tmp_path / "c.jsonl", tmp_path / "text", on_bad_row="skip", progress=False)
    encoder = str(save_encoder(tmp_path / "encoder"))
    dense = build_dense_index(
        tmp_path / "c.jsonl", tmp_path / "dense", model=encoder, on_bad_row="skip", progress=False
    )
    assert (text.count, text.skipped, dense.count, dense.skipped) == (2, 2, 2, 2)
    assert [hit.text for hit in TextIndex.open(tmp_path / "text").search_now("word2", 2)] == ["word2"]

    (tmp_path / "in").mkdir()
    for number in range(40):
        emblem(number).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "05.png").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"05.png: .*is not a readable"):
        build_image_index(tmp_path / "in", tmp_path / "images", progress=False)
    command = ["index", "image", str(tmp_path / "in"), "--out", str(tmp_path / "images"), "--on_bad_row", "skip"]
    assert main(command) == 0
    assert "39 images" in (shown := capsys.readouterr().out) and "1 bad rows were passed over" in shown
    index = ImageIndex.open(tmp_path / "images")
    assert len(index) == 39 and index.search_now(emblem(39), 1)[0].title == "39"


def test_where_all_rows_are_bad_the_first_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n{oops\n')
    with pytest.raises(ValueError, match=r"no passage was found: 2 bad rows .*c.jsonl:1: the passage is empty"):
        build_text_index(tmp_path / "c.jsonl", tmp_path / "out", on_bad_row="skip", progress=False)
    (tmp_path / "rows.jsonl").write_text('{"image": "a"}\n')
    with pytest.raises(ValueError, match=r"no image was found: 1 bad rows .*rows.jsonl:1: key 'title' is missing"):
        build_image_index(tmp_path / "rows.jsonl", tmp_path / "out", on_bad_row="skip", progress=False)


def test_images_of_which_none_can_be_read_make_no_index(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; the first: .*a.jpg"):
        build_image_index(tmp_path / "in", tmp_path / "out", on_bad_row="skip", progress=False)
    assert not (tmp_path / "out").exists()


def test_images_are_told_by_their_first_bytes_and_the_rest_is_said(
    tmp_path: Path, emblem: Callable[..., Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for number, (name, kind) in enumerate([("a.jfif", "JPEG"), ("b", "PNG"), ("c.dat", "WEBP"), ("d.JPG", "PNG")]):
        emblem(number).save(tmp_path / "in" / name, kind)
    emblem(4).save(tmp_path / "in" / "e.bmp", "BMP")
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    built = build_image_index(tmp_path / "in", tmp_path / "out", progress=False)
    assert built.count == 4 and "passed over 2 files" in caplog.text and "e.bmp, notes.txt" in caplog.text
    hits = ImageIndex.open(tmp_path / "out").search_now(emblem(1), 4)
    assert hits[0].title == "b" and {hit.title for hit in hits} == {"a", "b", "c", "d"}


def test_names_are_the_same_however_their_accents_are_encoded(
    tmp_path: Path, emblem: Callable[..., Image.Image]
) -> None:
    (tmp_path / "in").mkdir()
    emblem(0).save(tmp_path / "in" / "cafe\u0301.png")
    emblem(1).save(tmp_path / "in" / "th\u00e9.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "caf\u00e9.png", "title": "Café"}))
    build_image_index(tmp_path / "in", tmp_path / "1", captions=tmp_path / "captions.jsonl", progress=False)
    assert [hit.title for hit in ImageIndex.open(tmp_path / "1").search_now(emblem(0), 2)] == ["Café", "th\u00e9"]
    rows = [{"image": "caf\u00e9.png", "title": "0"}, {"image": "the\u0301.png", "title": "1"}]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert build_image_index(tmp_path / "in" / "rows.jsonl", tmp_path / "2", progress=False).count == 2


@pytest.mark.parametrize(
    "image", ["https://a.example/b.png", "data:image/png;base64,aaaa", "a" * 11_000, "a\0b", "é" * 300]
)
def test_what_is_no_path_is_a_bad_row(image: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": image, "title": "a"}))
    with pytest.raises(ValueError, match=r"rows.jsonl:1: key 'image' is no path of a file") as raised:
        build_image_index(tmp_path / "rows.jsonl", tmp_path / "out", progress=False)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))
