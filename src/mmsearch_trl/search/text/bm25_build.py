"""Builds a BM25 index, and goes on where a build was stopped: a corpus of millions of passages takes most of an hour.

Passages are committed a few ten thousand at a time to `.NAME.partial` beside the index's place, which becomes the
index when it is whole. tantivy's commit is all or nothing, so how far a build has come is how many passages its last
commit holds. A build that is started again with the same corpus and language goes on from there, and gives the same
answers and the same fingerprint as one that was never stopped.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tantivy

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.folder import (
    Manifest,
    check_replaceable,
    digest_of,
    put_in_place,
    source_stamp,
    unfinished,
    write_manifest,
)
from mmsearch_trl.search.index.rows import read_rows
from mmsearch_trl.search.text.analysis import make_analyzer
from mmsearch_trl.search.text.bm25 import ANALYZER, TANTIVY, passage_of


_BEGUN = "begun.json"
_REPORT_EVERY = 500
COMMIT_EVERY = 50_000
"""Passages; what is lost when a build is killed."""


def write_text_index(
    source: Path,
    out: Path,
    *,
    language: str = "en",
    overwrite: bool = False,
    advance: Callable[[int], object] = lambda count: None,
) -> Manifest:
    """Index the passages of a JSONL in the new folder `out`; `advance` is told of passages done.

    Raises:
        UserError: a row is wrong (names file and line), or there is none: then nothing is left behind; or the language
            is unknown, or `out` exists or cannot be written.
    """
    check_replaceable(out, overwrite=overwrite)
    analyzer = make_analyzer(language)
    folder = unfinished(out)
    with writing(folder):
        try:
            index = _begin(folder, source, language)
            index.register_tokenizer(ANALYZER, analyzer)
            count, digest = _add_passages(source, index, digest_of("bm25", language), advance)
            if not count:
                raise UserError(f"{source}: no passage was found")
        except UserError:  # the corpus has to be changed, and then nothing of this build is of use
            shutil.rmtree(folder, ignore_errors=True)
            raise
        manifest = Manifest(kind="text", count=count, fingerprint=digest, language=language)
        write_manifest(folder, manifest)
        put_in_place(folder, out)
        (out / _BEGUN).unlink()
    return manifest


@contextmanager
def _tantivy() -> Iterator[None]:
    """tantivy raises ValueError whatever is wrong; of what it writes, that is the disk."""
    try:
        yield
    except ValueError as error:
        raise OSError(str(error)) from error


def _begin(folder: Path, source: Path, language: str) -> tantivy.Index:
    """The index in `folder`, which is begun where it is another's or nobody's.

    Raises:
        UserError: there is no source.
    """
    begun = {"source": source_stamp(source), "language": language}
    try:
        if json.loads((folder / _BEGUN).read_text(encoding="utf-8")) == begun:
            return tantivy.Index.open(str(folder / TANTIVY))
    except (OSError, ValueError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    (folder / TANTIVY).mkdir(parents=True)
    with _tantivy():
        index = tantivy.Index(_schema(), path=str(folder / TANTIVY))
    (folder / _BEGUN).write_text(json.dumps(begun), encoding="utf-8")
    return index


def _add_passages(
    source: Path, index: tantivy.Index, digest: str, advance: Callable[[int], object]
) -> tuple[int, str]:
    """Add the rows that are not there yet; returns how many there are then, and `digest` continued over all."""
    with _tantivy():
        index.reload()
        done = index.searcher().num_docs
        writer = index.writer(num_threads=1)
    count = 0
    try:
        for row in read_rows(source):
            passage = passage_of(row)
            stored = json.dumps(passage)
            digest = digest_of(digest, stored)
            if count >= done:
                document = tantivy.Document()
                document.add_integer("ordinal", count)
                document.add_text("words", f"{passage[0]}\n{passage[1]}")
                document.add_bytes("passage", stored.encode())
                with _tantivy():
                    writer.add_document(document)
            count += 1
            if count % _REPORT_EVERY == 0:
                advance(_REPORT_EVERY)
            if count > done and count % COMMIT_EVERY == 0:
                with _tantivy():
                    writer.commit()
        advance(count % _REPORT_EVERY)
        with _tantivy():
            writer.commit()
    finally:  # its thread may still be writing into a folder that is about to be deleted or moved
        with _tantivy():
            writer.wait_merging_threads()
    return count, digest


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    # Signed: tantivy's writer thread panics on Document(ordinal=0) in an unsigned fast field.
    builder.add_integer_field("ordinal", stored=True)
    builder.add_text_field("words", tokenizer_name=ANALYZER, index_option="freq")
    builder.add_bytes_field("passage", stored=True)
    return builder.build()
