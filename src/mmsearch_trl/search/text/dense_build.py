"""Builds a dense index, and goes on where a build was stopped: encoding a large corpus takes days.

Everything is written to `.NAME.partial` beside the index's place, which becomes the index when it is whole. A build
that is started again with the same corpus and encoder takes over what is there.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.folder import (
    Manifest,
    check_replaceable,
    digest_of,
    put_in_place,
    source_stamp,
    unfinished,
    write_manifest,
)
from mmsearch_trl.search.index.rows import BadRows, usable
from mmsearch_trl.search.text.bm25 import passage_of
from mmsearch_trl.search.text.dense import EXACT, FAISS, VECTORS, import_faiss
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.passages import Passages, contents, write_passages


_PROGRESS = "progress.json"
_BATCH = 256
"""Passages that are encoded between two looks at the clock; what is lost when a build is killed."""
_TRAINING_VECTORS_PER_LIST = 40
_ADDED_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a build has come: what of, by what, and how many vectors of how many are written."""

    source: str
    encoder: str
    count: int
    done: int


def write_dense_index(
    source: Path,
    out: Path,
    encoder: TextEncoder,
    *,
    kind: str = EXACT,
    overwrite: bool = False,
    bad: BadRows | None = None,
    advance: Callable[[int, int], object] = lambda done, count: None,
) -> Manifest:
    """Encode the passages of a corpus into an index in the new folder `out`.

    Args:
        kind: `exact`, or what `faiss.index_factory` calls an index: `Flat`, `HNSW64`, `IVF4096,SQ8`.
        bad: Gets the rows that cannot be used; by default the first ends the build.
        advance: Is told of passages done, and of how many there are.

    Raises:
        UserError: a row is wrong (names file and line), or there is none; `out` exists or cannot be written; FAISS is
            needed and not installed, or knows no such index.
    """
    check_replaceable(out, overwrite=overwrite)
    index = None if kind == EXACT else _empty_index(kind, encoder.dim)
    folder = unfinished(out)
    with writing(folder):
        progress = _begin(folder, source, encoder, bad)
        vectors = np.lib.format.open_memmap(folder / VECTORS, mode="r+")
        _encode(folder, progress, vectors, encoder, advance)
        if index is not None:
            _fill(index, vectors, folder / FAISS)
        digest = digest_of("dense", kind, encoder.fingerprint, progress.source, str(progress.count))
        manifest = Manifest(
            kind="dense",
            count=progress.count,
            fingerprint=digest,
            encoder=encoder.fingerprint,
            model=encoder.name,
            prefixes=(encoder.recipe.query, encoder.recipe.passage),
        )
        write_manifest(folder, manifest)
        put_in_place(folder, out)
        # Last: a build that is killed before it has its place can still go on.
        (out / _PROGRESS).unlink()
        if index is not None:
            (out / VECTORS).unlink()
    return manifest


def _begin(folder: Path, source: Path, encoder: TextEncoder, bad: BadRows | None = None) -> _Progress:
    """The progress of the build in `folder`, which is begun where it is another's or nobody's."""
    name = source_stamp(source)
    with suppress(OSError, ValueError, TypeError):  # there is none, or a damaged one
        progress = _Progress(**json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
        if (progress.source, progress.encoder) == (name, encoder.fingerprint):
            return progress
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bad = bad or BadRows()
    count = write_passages(usable(source, passage_of, bad), folder)
    if not count:
        raise bad.nothing(source, "passage")
    np.lib.format.open_memmap(folder / VECTORS, mode="w+", dtype=np.float32, shape=(count, encoder.dim)).flush()
    progress = _Progress(name, encoder.fingerprint, count, 0)
    _write_progress(folder, progress)
    return progress


def _encode(
    folder: Path,
    progress: _Progress,
    vectors: "np.memmap[Any, np.dtype[np.float32]]",
    encoder: TextEncoder,
    advance: Callable[[int, int], object],
) -> None:
    passages = Passages(folder)
    advance(progress.done, progress.count)
    for start in range(progress.done, progress.count, _BATCH):
        numbers = range(start, min(start + _BATCH, progress.count))
        texts = [contents(title, text).lstrip("\n") for title, text, *_ in passages.read(numbers)]
        vectors[start : start + len(texts)] = encoder.passages(texts)
        vectors.flush()
        _write_progress(folder, _Progress(progress.source, progress.encoder, progress.count, numbers[-1] + 1))
        advance(len(texts), progress.count)


def _empty_index(kind: str, width: int) -> Any:
    faiss = import_faiss()
    try:
        return faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(f"FAISS knows no index {kind!r}: {str(error).splitlines()[-1].strip()}") from error


def _fill(index: Any, vectors: FloatArray, path: Path) -> None:
    faiss = import_faiss()
    if not index.is_trained:
        rng = np.random.default_rng(0)
        wanted = _TRAINING_VECTORS_PER_LIST * getattr(faiss.try_extract_index_ivf(index), "nlist", 1024)
        rows = np.sort(rng.permutation(len(vectors))[:wanted])
        index.train(np.ascontiguousarray(vectors[rows]))
    for start in range(0, len(vectors), _ADDED_AT_ONCE):
        index.add(np.ascontiguousarray(vectors[start : start + _ADDED_AT_ONCE]))
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[-1].strip()) from error


def _write_progress(folder: Path, progress: _Progress) -> None:
    scratch = folder / f"{_PROGRESS}.new"
    scratch.write_text(json.dumps(asdict(progress)), encoding="utf-8")
    os.replace(scratch, folder / _PROGRESS)
