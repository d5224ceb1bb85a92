"""Builds the kinds of index: `mmsearch index image|text|dense SOURCE --out DIR` calls these."""

import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from mmsearch_trl.search.image.index import load_encoder, write_image_index
from mmsearch_trl.search.image.source import read_images
from mmsearch_trl.search.index.folder import new_folder
from mmsearch_trl.search.media.thumbnail import THUMBNAIL_SIDE
from mmsearch_trl.search.text.bm25_build import write_text_index


@dataclass(frozen=True, slots=True)
class Built:
    """A finished index: where it is, how many entries it has, its fingerprint, and the seconds it took."""

    path: Path
    count: int
    fingerprint: str
    seconds: float


def build_image_index(
    source: str | Path,
    out: str | Path,
    *,
    captions: str | Path | None = None,
    model: str | None = None,
    thumbnail_side: int = THUMBNAIL_SIDE,
    overwrite: bool = False,
    progress: bool = True,
) -> Built:
    """Build an image index in the new folder `out`.

    Args:
        source: A folder of images, or a JSONL of `{"image", "title", "url"?, "thumbnail"?}` (see
            `search/image/source.py`).
        captions: Titles and addresses for a folder of images.
        model: Path or name of a SigLIP, DINOv2 or CLIP model; None uses the model-free descriptor, which finds the
            same image but not another image of the same thing.
        thumbnail_side: Longer side of the stored thumbnails, pixels.
        overwrite: Replace the index that `out` holds.

    Raises:
        UserError: a row is wrong (file and line are named), or `out` exists or cannot be written.
    """
    start = time.perf_counter()
    out = Path(out)
    with new_folder(out, overwrite=overwrite) as folder:
        images = read_images(Path(source), None if captions is None else Path(captions))
        encoder = load_encoder(model)
        with tqdm(total=len(images), desc="Encoding images", unit="image", disable=not progress) as bar:
            manifest = write_image_index(
                images, folder, encoder, model=model, thumbnail_side=thumbnail_side, advance=bar.update
            )
    return Built(out, manifest.count, manifest.fingerprint, time.perf_counter() - start)


def build_dense_index(
    source: str | Path,
    out: str | Path,
    *,
    model: str,
    kind: str = "exact",
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Built:
    """Build a dense index in the new folder `out`; one that was stopped goes on where it was.

    Args:
        source: A JSONL of passages, as for `build_text_index`.
        model: Path or name of the encoder, such as `intfloat/e5-base-v2`.
        kind: `exact`, or what FAISS calls an index, such as `HNSW64` or `IVF4096,SQ8`.
        device: Where the encoder runs.

    Raises:
        UserError: a row is wrong (file and line are named), `out` exists or cannot be written, the encoder or the kind
            is unknown, or FAISS is needed and not installed.
    """
    from mmsearch_trl.search.text.dense_build import write_dense_index
    from mmsearch_trl.search.text.encoder import TextEncoder

    start = time.perf_counter()
    with tqdm(desc="Encoding passages", unit="passage", disable=not progress) as bar:

        def advance(done: int, count: int) -> None:
            bar.total = count
            bar.update(done)

        manifest = write_dense_index(
            Path(source), Path(out), TextEncoder(model, device=device), kind=kind, overwrite=overwrite, advance=advance
        )
    return Built(Path(out), manifest.count, manifest.fingerprint, time.perf_counter() - start)


def build_text_index(
    source: str | Path,
    out: str | Path,
    *,
    language: str = "en",
    overwrite: bool = False,
    progress: bool = True,
) -> Built:
    """Build a BM25 index in the new folder `out`; one that was stopped goes on where it was.

    Args:
        source: A JSONL of `{"id", "contents"}` (title on the first line) or `{"title"?, "text", "url"?}`; may be
            gzipped (`.gz`).
        language: How words are cut: a code of `search/text/analysis.py`, such as `en` or `zh`.
        overwrite: Replace the index that `out` holds.

    Raises:
        UserError: a row is wrong (file and line are named), or `out` exists or cannot be written.
    """
    start = time.perf_counter()
    out = Path(out)
    with tqdm(desc="Indexing passages", unit="passage", disable=not progress) as bar:
        manifest = write_text_index(Path(source), out, language=language, overwrite=overwrite, advance=bar.update)
    return Built(out, manifest.count, manifest.fingerprint, time.perf_counter() - start)
