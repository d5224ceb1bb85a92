"""What an index folder holds and whether it is whole, without its encoder being loaded: `mmsearch index info`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.folder import Manifest, opening, read_any_manifest
from mmsearch_trl.search.text.bm25 import check_folding


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo:
    """
    Attributes:
        dimension: Numbers of a vector; None for an index by words.
        vectors: How the vectors lie: `exact`, or the name of FAISS's class.
        missing: What is wrong with it; empty where it is whole.
    """

    manifest: Manifest
    dimension: int | None
    vectors: str
    bytes: int
    missing: str

    def lines(self) -> Iterator[tuple[str, str]]:
        """What a person wants to know, by name."""
        manifest = self.manifest
        yield "kind", f"{manifest.kind} ({self.vectors})" if self.vectors else manifest.kind
        yield "images" if manifest.kind == "image" else "passages", f"{manifest.count:,}"
        if self.dimension is not None:
            yield "dimension", str(self.dimension)
            yield "encoder", f"{manifest.model or 'by pixels, without a model'} ({manifest.encoder})"
        if manifest.language:
            yield "language", manifest.language
        yield "size", f"{self.bytes / 1e6:,.1f} MB"
        yield "format", str(manifest.format)
        yield "fingerprint", manifest.fingerprint
        yield "complete", f"no: {self.missing}" if self.missing else "yes"


def describe_index(folder: Path) -> IndexInfo:
    """
    Raises:
        UserError: there is no index in `folder`, or one that is still being built, or one of FAISS, which is not
            installed.
    """
    _check_built(folder)
    manifest = read_any_manifest(folder)
    if manifest.kind not in _READERS:
        raise UserError(f"{folder} holds a {manifest.kind!r} index, which this version does not know")
    try:
        if manifest.kind == "text":
            check_folding(folder, manifest)
        count, dimension, vectors = _READERS[manifest.kind](folder)
        found = "" if count == manifest.count else f"{manifest.count:,} entries were expected, {count:,} are there"
    except UserError as error:
        dimension, vectors, found = None, "", str(error)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return IndexInfo(manifest=manifest, dimension=dimension, vectors=vectors, bytes=size, missing=found)


def _check_built(folder: Path) -> None:
    """
    Raises:
        UserError: the folder is not there, or is a build under way; says how far that is.
    """
    if folder.is_dir() and folder.suffix != ".partial":
        return
    begun = [folder] if folder.is_dir() else sorted(folder.parent.glob(f".{folder.name}*.partial"))
    if not begun:
        raise UserError(f"{folder} is not there: name a folder made by `mmsearch index`")
    raise UserError(
        f"{begun[0]} is half an index{_progress(begun[0])}: let its build end, or start it again (of passages, it "
        "goes on where it was)"
    )


def _progress(partial: Path) -> str:
    try:
        progress = json.loads((partial / "progress.json").read_text(encoding="utf-8"))
        return f", {progress['done']:,} of {progress['count']:,} passages encoded"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _text(folder: Path) -> tuple[int, int | None, str]:
    import tantivy

    with opening(folder):
        return tantivy.Index.open(str(folder / "tantivy")).searcher().num_docs, None, ""


def _dense(folder: Path) -> tuple[int, int | None, str]:
    from mmsearch_trl.search.text.dense import FAISS, VECTORS, read_faiss
    from mmsearch_trl.search.text.passages import Passages

    stored = Passages(folder)
    passages = len(stored)
    with opening(folder):
        stored.read([passages - 1])  # the last to be written
    if (folder / FAISS).exists():
        index: Any = read_faiss(folder / FAISS)
        return min(passages, index.ntotal), index.d, f"FAISS {type(index).__name__}"
    count, dimension = _shape(folder, VECTORS)
    return min(passages, count), dimension, "exact"


def _image(folder: Path) -> tuple[int, int | None, str]:
    from mmsearch_trl.search.image.index import HITS, VECTORS

    with opening(folder), (folder / HITS).open("rb") as lines:
        hits = sum(1 for _ in lines)
    count, dimension = _shape(folder, VECTORS)
    return min(hits, count), dimension, "exact"


def _shape(folder: Path, vectors: str) -> tuple[int, int]:
    with opening(folder):
        return np.load(folder / vectors, mmap_mode="r", allow_pickle=False).shape


_READERS = {"text": _text, "dense": _dense, "image": _image}
