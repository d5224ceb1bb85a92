"""A BM25 text index on disk, on tantivy, memory-mapped and shared by the processes of a machine.

Rules, each learnt from a trap:
* One writer thread and a stored ordinal: two threads give equal scores another order in every build. Hits are ordered
  by (-score, ordinal).
* Text that a model wrote is never parsed as a query language (`C++ [a TO` would raise, `a:b` would pick a field): it
  is analyzed into terms, any of which may match. So no query raises; an empty one finds nothing.
* The number of terms is capped: a long query costs time in proportion.
* Title and text are one field: scored apart, a title's rare words drown the text.
"""

import json
from collections.abc import Callable
from pathlib import Path

import tantivy

from mmsearch_trl.search.index_folder import Manifest, digest_of, read_manifest, write_manifest
from mmsearch_trl.search.rows import Row, SourceError, read_rows
from mmsearch_trl.search.text.analysis import encodable, make_analyzer
from mmsearch_trl.search.threads import call_blocking
from mmsearch_trl.search.types import TextHit


_ANALYZER = "mmsearch"
_TANTIVY = "tantivy"
_MAX_QUERY_CHARS = 2000
_MAX_TERMS = 64
_TIE_MARGIN = 32
"""Hits fetched beyond k, so that a tie across the border is decided by ordinal and not by tantivy's segments."""
_REPORT_EVERY = 500


class TextIndex:
    """Finds passages by their words; a `SearchBackend[str]`. Open one with `TextIndex.open`."""

    name = "text-index"

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.fingerprint = manifest.fingerprint
        self._count = manifest.count
        self._analyzer = make_analyzer(manifest.language)
        self._index = tantivy.Index.open(str(folder / _TANTIVY))
        self._index.register_tokenizer(_ANALYZER, self._analyzer)
        self._schema = self._index.schema
        self._searcher = self._index.searcher()
        if self._searcher.num_docs != manifest.count:
            raise ValueError(
                f"{folder} is damaged: it should hold {manifest.count} passages and holds {self._searcher.num_docs}; "
                "build it again"
            )

    @classmethod
    def open(cls, path: str | Path) -> "TextIndex":
        """Open an index without rebuilding anything.

        Raises:
            ValueError: there is no index, or it is damaged.
        """
        folder = Path(path)
        manifest = read_manifest(folder, "text")
        if not tantivy.Index.exists(str(folder / _TANTIVY)):
            raise ValueError(f"{folder} is damaged: {_TANTIVY}/ is missing; build it again")
        return cls(folder, manifest)

    def __len__(self) -> int:
        return self._count

    async def search(self, query: str, k: int) -> list[TextHit]:
        """The `k` best passages, best first; empty where no word of the query occurs."""
        return await call_blocking(self.search_now, query, k)

    def search_now(self, query: str, k: int) -> list[TextHit]:
        """As `search`, on the calling thread."""
        terms = self._terms(query)
        if not terms or k <= 0:
            return []
        should = [
            (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "words", term, "freq")) for term in terms
        ]
        found = self._searcher.search(tantivy.Query.boolean_query(should), limit=k + _TIE_MARGIN, count=False).hits
        scored = [(float(score), self._searcher.doc(address)) for score, address in found]
        scored.sort(key=lambda hit: (-hit[0], hit[1].get_first("ordinal")))
        return [_hit(score, document) for score, document in scored[:k]]

    def _terms(self, query: str) -> list[str]:
        """The distinct terms of a query in order of first appearance."""
        terms = self._analyzer.analyze(encodable(query[:_MAX_QUERY_CHARS]))
        return list(dict.fromkeys(terms))[:_MAX_TERMS]


def write_text_index(
    source: Path, folder: Path, *, language: str = "en", advance: Callable[[int], object] = lambda count: None
) -> Manifest:
    """Index the passages of a JSONL into the existing empty `folder`; `advance` is told of passages done.

    Raises:
        SourceError: a row is wrong (names file and line), or there is none.
        ValueError: the language is unknown.
    """
    analyzer = make_analyzer(language)
    (folder / _TANTIVY).mkdir()
    index = tantivy.Index(_schema(), path=str(folder / _TANTIVY))
    index.register_tokenizer(_ANALYZER, analyzer)
    writer = index.writer(num_threads=1)
    try:
        count, digest = _add_passages(source, writer, digest_of("bm25", language), advance)
        writer.commit()
    finally:  # its thread may still be writing into a folder that is about to be deleted
        writer.wait_merging_threads()
    if not count:
        raise SourceError(f"{source}: no passage was found")
    manifest = Manifest(kind="text", count=count, fingerprint=digest, language=language)
    write_manifest(folder, manifest)
    return manifest


def _add_passages(
    source: Path, writer: tantivy.IndexWriter, digest: str, advance: Callable[[int], object]
) -> tuple[int, str]:
    """Add every row; returns how many there were, and `digest` continued over them."""
    count = 0
    for row in read_rows(source):
        passage = passage_of(row)
        stored = json.dumps(passage)
        document = tantivy.Document()
        document.add_integer("ordinal", count)
        document.add_text("words", f"{passage[0]}\n{passage[1]}")
        document.add_bytes("passage", stored.encode())
        writer.add_document(document)
        digest = digest_of(digest, stored)
        count += 1
        if count % _REPORT_EVERY == 0:
            advance(_REPORT_EVERY)
    advance(count % _REPORT_EVERY)
    return count, digest


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    # Signed: tantivy's writer thread panics on Document(ordinal=0) in an unsigned fast field.
    builder.add_integer_field("ordinal", stored=True)
    builder.add_text_field("words", tokenizer_name=_ANALYZER, index_option="freq")
    builder.add_bytes_field("passage", stored=True)
    return builder.build()


def passage_of(row: Row) -> tuple[str, str, str | None, str | None]:
    """Title, text, address and id of a row. `contents` of one line is a text without a title.

    Raises:
        SourceError: the row holds no text.
    """
    if "contents" in row.values:
        first, newline, rest = row.text("contents").partition("\n")
        title, text = (first, rest) if newline else ("", first)
    else:
        title, text = row.text("title", ""), row.text("text")
    if not text.strip() and not title.strip():
        raise row.error("the passage is empty")
    number = row.values.get("id")
    name = str(number) if isinstance(number, int) else row.text("id", "")
    return encodable(title), encodable(text), encodable(row.text("url", "")) or None, encodable(name) or None


def _hit(score: float, document: tantivy.Document) -> TextHit:
    title, text, url, name = json.loads(bytes(document.get_first("passage")))  # pyright: ignore[reportArgumentType]
    return TextHit(title=title, text=text, url=url, score=score, id=name)
