"""What `mmsearch index info` says of whole, damaged, half built and other folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from search.text.encoders import save_encoder

from mmsearch_trl.commands.main import main
from mmsearch_trl.search.index.folder import FORMAT, read_any_manifest
from mmsearch_trl.search.index_build import build_dense_index, build_image_index, build_text_index
from mmsearch_trl.search.index_info import describe_index
from mmsearch_trl.search.text import dense_build
from mmsearch_trl.search.text.encoder import TextEncoder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `text`, `exact`, `flat` of 12 passages, `corpus.jsonl` and the `encoder` of 32 numbers."""
    home = tmp_path_factory.mktemp("indexes")
    (home / "corpus.jsonl").write_text("\n".join(json.dumps({"text": f"word{number}"}) for number in range(12)))
    encoder = str(save_encoder(home / "encoder"))
    build_text_index(home / "corpus.jsonl", home / "text", progress=False)
    build_dense_index(home / "corpus.jsonl", home / "exact", model=encoder, progress=False)
    build_dense_index(home / "corpus.jsonl", home / "flat", model=encoder, kind="Flat", progress=False)
    return home


@pytest.mark.parametrize(
    ("name", "dimension", "vectors"), [("text", None, ""), ("exact", 32, "exact"), ("flat", 32, "FAISS IndexFlatIP")]
)
def test_what_an_index_holds(name: str, dimension: int | None, vectors: str, home: Path) -> None:
    info = describe_index(home / name)
    assert (info.manifest.count, info.dimension, info.vectors, info.missing) == (12, dimension, vectors, "")
    assert info.manifest == read_any_manifest(home / name)
    assert info.bytes == sum(file.stat().st_size for file in (home / name).rglob("*") if file.is_file())


def test_pictures_too(emblem: Callable[..., Image.Image], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    emblem(1).save(tmp_path / "pictures" / "1.png")
    build_image_index(tmp_path / "pictures", tmp_path / "index", progress=False)
    shown = dict(describe_index(tmp_path / "index").lines())
    assert (shown["kind"], shown["images"], shown["complete"]) == ("image (exact)", "1", "yes")
    assert "without a model" in shown["encoder"]


def test_the_command_prints_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "info", str(home / "exact")]) == 0
    shown = capsys.readouterr().out
    for part in ("dense (exact)", "12", "32", str(home / "encoder"), str(FORMAT), "complete    yes"):
        assert part in shown


@pytest.mark.parametrize(
    ("name", "lost", "missing"),
    [
        ("exact", "vectors.npy", "No such file"),
        ("flat", "faiss.index", "No such file"),
        ("exact", "passages.jsonl", "No such file"),
        ("text", "tantivy/meta.json", "meta.json"),
    ],
)
def test_a_file_that_is_missing_is_named(
    name: str, lost: str, missing: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(home / name, tmp_path / "copy")
    (folder / lost).unlink()
    assert main(["index", "info", str(folder)]) == 1
    shown = capsys.readouterr()
    assert "complete    no: " in shown.out and missing in shown.out and "is damaged: build it again" in shown.err


def test_entries_that_are_missing_are_counted(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "exact", tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"count": 13}))
    assert describe_index(folder).missing == "13 entries were expected, 12 are there"


def change(folder: Path, **values: Any) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"kind": "text", "count": 1, "fingerprint": "a"} | values))


def test_what_is_no_index_is_one_line(home: Path, tmp_path: Path) -> None:
    change(tmp_path / "old", format=FORMAT - 1)
    change(tmp_path / "other", kind="audio")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "nowhere": "is not there: name a folder made by `mmsearch index`",
        "empty": r"holds no index \(manifest.json is missing\)",
        "old": f"has index format {FORMAT - 1}, this version reads {FORMAT}",
        "other": "holds a 'audio' index, which this version does not know",
    }.items():
        with pytest.raises(ValueError, match=message):
            describe_index(tmp_path / name)


def test_half_an_index_says_how_far_it_is(home: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".index.partial"
    progress = dense_build._begin(partial, home / "corpus.jsonl", TextEncoder(home / "encoder"))
    dense_build._write_progress(partial, dense_build._Progress(progress.source, progress.encoder, 12, 5))
    for name in ("index", ".index.partial"):
        with pytest.raises(ValueError, match="half an index, 5 of 12 passages encoded: let its build end"):
            describe_index(tmp_path / name)
