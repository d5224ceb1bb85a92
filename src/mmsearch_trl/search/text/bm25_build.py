"""Builds a BM25 index, and goes on where a build was stopped: a corpus of millions of passages takes most of an hour.

Passages are committed a few ten thousand at a time to `.NAME.partial` beside the index's place, which becomes the
index when it is whole. tantivy's commit is all or nothing, so how far a build has come is how many passages its last
commit holds. A build that is started again with the same corpus and language goes on from there, and gives the same
answers and the same fingerprint as one that was never stopped.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
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
from mmsearch_trl.search.index.rows import BadRows, usable
from mmsearch_trl.search.text.analysis import foreign_script, make_analyzer
from mmsearch_trl.search.text.bm25 import ANALYZER, TANTIVY, passage_of
from mmsearch_trl.search.text.folding import FOLDING, fold
from mmsearch_trl.search.text.passages import Passage


_BEGUN = "begun.json"
_REPORT_EVERY = 500
COMMIT_EVERY = 50_000
"""Passages; what is lost when a build is killed."""
_PASSAGES_LOOKED_AT, _CHARS_LOOKED_AT = 1000, 500
"""To tell the script of a corpus."""


def write_text_index(
    source: Path,
    out: Path,
    *,
    language: str = "en",
    overwrite: bool = False,
    bad: BadRows | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Manifest:
    """Index the passages of a corpus in the new folder `out`; `advance` is told of passages done.

    Args:
        bad: Gets the rows that cannot be used; by default the first ends the build.

    Raises:
        UserError: a row is wrong (names file and line), or there is none: then nothing is left behind; or the language
            is unknown or not that of the corpus, or `out` exists or cannot be written.
    """
    check_replaceable(out, overwrite=overwrite)
    analyzer, bad = make_analyzer(language), bad or BadRows()
    folder = unfinished(out)
    with writing(folder):
        try:
            index = _begin(folder, source, language)
            index.register_tokenizer(ANALYZER, analyzer)
            passages = _in_language(usable(source, passage_of, bad), source, language)
            count, digest = _add_passages(passages, index, digest_of("bm25", language, str(FOLDING)), advance)
            if not count:
                raise bad.nothing(source, "passage")
        except UserError:  # the corpus has to be changed, and then nothing of this build is of use
            shutil.rmtree(folder, ignore_errors=True)
            raise
        manifest = Manifest(kind="text", count=count, fingerprint=digest, language=language, folding=FOLDING)
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
    begun = {"source": source_stamp(source), "language": language, "folding": FOLDING}
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


def _in_language(passages: Iterable[Passage], source: Path, language: str) -> Iterator[Passage]:
    """The passages.

    Raises:
        UserError: the first of them are not written in the language's script.
    """
    texts: list[str] = []

    def check() -> None:
        if foreign := foreign_script(language, texts):
            raise UserError(f"{source}: {foreign}")

    for number, passage in enumerate(passages, start=1):
        if number <= _PASSAGES_LOOKED_AT:
            texts.append(f"{passage[0]} {passage[1]}"[:_CHARS_LOOKED_AT])
        if number == _PASSAGES_LOOKED_AT:
            check()
        yield passage
    if len(texts) < _PASSAGES_LOOKED_AT:
        check()


def _add_passages(
    passages: Iterable[Passage], index: tantivy.Index, digest: str, advance: Callable[[int], object]
) -> tuple[int, str]:
    """Add the passages that are not there yet; returns how many there are then, and `digest` continued over all."""
    with _tantivy():
        index.reload()
        done = index.searcher().num_docs
        writer = index.writer(num_threads=1)
    count = 0
    try:
        for passage in passages:
            stored = json.dumps(passage)
            digest = digest_of(digest, stored)
            if count >= done:
                document = tantivy.Document()
                document.add_integer("ordinal", count)
                document.add_text("words", fold(f"{passage[0]}\n{passage[1]}"))
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
