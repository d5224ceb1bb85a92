"""Builds the kinds of index: `mmsearch index image|text|dense SOURCE --out DIR` calls these."""

import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from mmsearch_trl.search.image.index import load_encoder, write_image_index
from mmsearch_trl.search.image.source import read_images
from mmsearch_trl.search.index.folder import Manifest, new_folder
from mmsearch_trl.search.index.rows import BadRows, OnBadRow
from mmsearch_trl.search.media.thumbnail import THUMBNAIL_SIDE
from mmsearch_trl.search.text.bm25_build import write_text_index


@dataclass(frozen=True, slots=True)
class Built:
    """A finished index: where it is, how many entries it has, its fingerprint, and the seconds it took.

    Attributes:
        skipped: Rows that could not be used and were passed over.
    """

    path: Path
    count: int
    fingerprint: str
    seconds: float
    skipped: int = 0


def build_image_index(
    source: str | Path,
    out: str | Path,
    *,
    captions: str | Path | None = None,
    model: str | None = None,
    thumbnail_side: int = THUMBNAIL_SIDE,
    overwrite: bool = False,
    on_bad_row: OnBadRow = "raise",
    progress: bool = True,
) -> Built:
    """Build an image index in the new folder `out`.

    Args:
        source: A folder of images, or rows of `{"image", "title", "url"?, "thumbnail"?}` (see
            `search/image/source.py`).
        captions: Titles and addresses for a folder of images.
        model: Path or name of a SigLIP, DINOv2 or CLIP model; None uses the model-free descriptor, which finds the
            same image but not another image of the same thing.
        thumbnail_side: Longer side of the stored thumbnails, pixels.
        overwrite: Replace the index that `out` holds.
        on_bad_row: Whether a row that cannot be used ends the build (`raise`), or is passed over and counted (`skip`).

    Raises:
        UserError: a row is wrong (file and line are named), or `out` exists or cannot be written.
    """
    start, bad = time.perf_counter(), BadRows(on_bad_row)
    out = Path(out)
    with new_folder(out, overwrite=overwrite) as folder:
        images = read_images(Path(source), None if captions is None else Path(captions), bad)
        encoder = load_encoder(model)
        with tqdm(total=len(images), desc="Encoding images", unit="image", disable=not progress) as bar:
            manifest = write_image_index(
                images, folder, encoder, model=model, thumbnail_side=thumbnail_side, bad=bad, advance=bar.update
            )
    return _built(out, manifest, bad, start)


def build_dense_index(
    source: str | Path,
    out: str | Path,
    *,
    model: str,
    kind: str = "exact",
    device: str = "cpu",
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    overwrite: bool = False,
    on_bad_row: OnBadRow = "raise",
    progress: bool = True,
) -> Built:
    """Build a dense index in the new folder `out`; one that was stopped goes on where it was.

    Args:
        source: Passages, as for `build_text_index`.
        model: Path or name of the encoder, such as `intfloat/e5-base-v2`.
        kind: `exact`, or what FAISS calls an index, such as `HNSW64` or `IVF4096,SQ8`.
        device: Where the encoder runs.
        query_prefix: What goes before a question, in place of what the model says; the index remembers it.
        passage_prefix: Likewise before a passage.
        on_bad_row: As for `build_image_index`.

    Raises:
        UserError: a row is wrong (file and line are named), `out` exists or cannot be written, the encoder or the kind
            is unknown, or FAISS is needed and not installed.
    """
    from mmsearch_trl.search.text.dense_build import write_dense_index
    from mmsearch_trl.search.text.encoder import TextEncoder

    start, bad = time.perf_counter(), BadRows(on_bad_row)
    with tqdm(desc="Encoding passages", unit="passage", disable=not progress) as bar:

        def advance(done: int, count: int) -> None:
            bar.total = count
            bar.update(done)

        encoder = TextEncoder(model, device=device, query_prefix=query_prefix, passage_prefix=passage_prefix)
        manifest = write_dense_index(
            Path(source), Path(out), encoder, kind=kind, overwrite=overwrite, bad=bad, advance=advance
        )
    return _built(Path(out), manifest, bad, start)


def build_text_index(
    source: str | Path,
    out: str | Path,
    *,
    language: str = "en",
    overwrite: bool = False,
    on_bad_row: OnBadRow = "raise",
    progress: bool = True,
) -> Built:
    """Build a BM25 index in the new folder `out`; one that was stopped goes on where it was.

    Args:
        source: Rows of `{"id", "contents"}` (title on the first line) or `{"title"?, "text", "url"?}`: JSON lines, may
            be compressed by gzip, bzip2, xz, zstd or lz4, or parquet.
        language: That of the corpus: a code of `search/text/analysis.py`, such as `en` or `zh`.
        overwrite: Replace the index that `out` holds.
        on_bad_row: Whether a row that cannot be used ends the build (`raise`), or is passed over and counted (`skip`).

    Raises:
        UserError: a row is wrong (file and line are named), or `out` exists or cannot be written.
    """
    start, bad = time.perf_counter(), BadRows(on_bad_row)
    out = Path(out)
    with tqdm(desc="Indexing passages", unit="passage", disable=not progress) as bar:
        manifest = write_text_index(
            Path(source), out, language=language, overwrite=overwrite, bad=bad, advance=bar.update
        )
    return _built(out, manifest, bad, start)


def _built(out: Path, manifest: Manifest, bad: BadRows, start: float) -> Built:
    bad.log()
    return Built(out, manifest.count, manifest.fingerprint, time.perf_counter() - start, bad.count)
