"""The folder an index lives in: written beside its place and moved there when complete, opened by its manifest.

A build that fails or is killed leaves no half index behind: the folder appears, with its manifest, or it does not.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mmsearch_trl.core.boundaries import reading, writing
from mmsearch_trl.core.errors import UserError


FORMAT = 2
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an index folder holds.

    Attributes:
        kind: `image`, `text` or `dense`.
        count: Number of entries.
        fingerprint: SHA-256 over everything the answers depend on; part of the key of cached answers.
        encoder: Fingerprint of the encoder that made the vectors.
        model: Path or name of the encoder; None for the model-free descriptor of images.
        prefixes: Dense index: what went before a question and before a passage; None where the model says it.
        language: Text index: which analyzer cut the words.
        folding: Text index: how words were folded before (`text/folding.py`); 0 in all others.
    """

    kind: str
    count: int
    fingerprint: str
    encoder: str = ""
    model: str | None = None
    prefixes: Sequence[str] | None = None
    language: str = ""
    folding: int = 0
    format: int = FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path, kind: str) -> Manifest:
    """
    Raises:
        UserError: `folder` holds no index of this kind and format; says how to build one.
    """
    manifest = read_any_manifest(folder, kind)
    if manifest.kind != kind:
        raise UserError(f"{folder} holds a {manifest.kind} index where a {kind} index is needed")
    return manifest


def read_any_manifest(folder: Path, kind: str = "KIND") -> Manifest:
    """
    Args:
        kind: What is expected there, for the advice.

    Raises:
        UserError: `folder` holds no index of this format; says how to build one.
    """
    build = f"build it with `mmsearch index {kind} SOURCE --out {folder}`"
    try:
        manifest = Manifest(**json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        what = "index" if kind == "KIND" else f"{kind} index"
        raise UserError(f"{folder} holds no {what} ({_MANIFEST} is missing): {build}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / _MANIFEST} cannot be read ({error}): {build}") from error
    if manifest.format != FORMAT:
        raise UserError(f"{folder} has index format {manifest.format}, this version reads {FORMAT}: {build}")
    return manifest


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Around what the system, numpy or tantivy reads of an index.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder} is damaged: build it again ({str(error).partition(chr(10))[0]})") from error


def check_encoder(folder: Path, manifest: Manifest, fingerprint: str) -> None:
    """
    Raises:
        UserError: the index was built with another encoder than its queries would be encoded with.
    """
    if fingerprint != manifest.encoder:
        raise UserError(
            f"{folder} was built with encoder {manifest.encoder}, queries would be encoded with {fingerprint}: build "
            "the index again or name the encoder it was built with"
        )


def unfinished(out: Path) -> Path:
    """Where a build that can be gone on with lies until its index is whole."""
    return out.with_name(f".{out.name}.partial")


def put_in_place(folder: Path, out: Path) -> None:
    """Make a finished build the index `out`, in the place of what is there."""
    if out.exists():
        shutil.rmtree(out)
    folder.replace(out)


def source_stamp(source: Path) -> str:
    """Changes whenever a source file, by its place, size and time, may have changed.

    Raises:
        UserError: it cannot be read.
    """
    with reading(source):
        stat = source.stat()
    return digest_of(str(source.resolve()), str(stat.st_size), str(stat.st_mtime_ns))


@contextmanager
def new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well and is deleted when it does not.

    Raises:
        UserError: `out` exists and may not be replaced (only a folder that holds an index is ever replaced), or it
            cannot be written.
    """
    check_replaceable(out, overwrite=overwrite)
    scratch = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    with writing(out):
        scratch.mkdir(parents=True)
        try:
            yield scratch
            put_in_place(scratch, out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """
    Raises:
        UserError: `out` exists and may not be replaced. Only a folder that holds an index is ever replaced.
    """
    if out.exists():
        if not overwrite:
            raise UserError(f"{out} exists: choose another folder, delete it, or ask to overwrite it")
        if not (out / _MANIFEST).is_file():
            raise UserError(f"{out} exists and is not an index: it is not replaced; choose another folder")


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of several parts; their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        # A query may hold a lone surrogate, which JSON can escape; it has to have a key as well.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
