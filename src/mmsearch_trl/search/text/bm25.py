"""A BM25 text index on disk, on tantivy, memory-mapped and shared by the processes of a machine.

Rules, each learnt from a trap:
* One writer thread and a stored ordinal: two threads give equal scores another order in every build. Hits are ordered
  by (-score, ordinal).
* Text that a model wrote is never parsed as a query language (`C++ [a TO` would raise, `a:b` would pick a field): it
  is analyzed into terms, any of which may match. So no query raises; an empty one finds nothing.
* The number of terms is capped, because a long query costs time in proportion: its rarest are kept, for a name may
  stand at its end.
* Passages and queries are folded alike (`folding.py`); an index whose passages were folded otherwise is refused.
* Title and text are one field: scored apart, a title's rare words drown the text.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tantivy

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.index.folder import Manifest, opening, read_manifest
from mmsearch_trl.search.index.rows import Row
from mmsearch_trl.search.text.analysis import encodable, make_analyzer
from mmsearch_trl.search.text.folding import FOLDING, fold
from mmsearch_trl.search.text.passages import Passage, one_line, title_and_text


ANALYZER = "mmsearch"
TANTIVY = "tantivy"
_MAX_QUERY_CHARS = 2000
_MAX_TERMS = 64
_TIE_MARGIN = 32
"""Hits fetched beyond k, so that a tie across the border is decided by ordinal and not by tantivy's segments."""
_MOST_FETCHED = 4096
"""Where a tie reaches beyond what was fetched, more are fetched up to here."""


@dataclass(frozen=True, kw_only=True)
class BM25Config(TextConfig):
    """`search.text` with `backend: bm25`."""

    paths = ("path",)

    backend: Literal["bm25"] = field(default="bm25", metadata={"help": "Passages by their words, on this machine."})
    path: str = field(metadata={"help": "Folder made by `mmsearch index text`."})

    def open(self, shared: Shared) -> "TextIndex":
        with named("search.text.path"):
            return TextIndex.open(self.path)


class TextIndex:
    """Finds passages by their words; a `SearchBackend[str]`. Open one with `TextIndex.open`."""

    name = "text-index"

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.fingerprint = manifest.fingerprint
        self._count = manifest.count
        self._analyzer = make_analyzer(manifest.language)
        with opening(folder):
            self._index = tantivy.Index.open(str(folder / TANTIVY))
        self._index.register_tokenizer(ANALYZER, self._analyzer)
        self._schema = self._index.schema
        self._searcher = self._index.searcher()
        if self._searcher.num_docs != manifest.count:
            raise UserError(
                f"{folder} is damaged: it should hold {manifest.count} passages and holds {self._searcher.num_docs}; "
                "build it again"
            )

    @classmethod
    def open(cls, path: str | Path) -> "TextIndex":
        """Open an index without rebuilding anything.

        Raises:
            UserError: there is no index, it is damaged, or an earlier version folded its words otherwise.
        """
        folder = Path(path)
        manifest = read_manifest(folder, "text")
        check_folding(folder, manifest)
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
        found = self._best(tantivy.Query.boolean_query(should), k)
        scored = [(float(score), self._searcher.doc(address)) for score, address in found]
        scored.sort(key=lambda hit: (-hit[0], hit[1].get_first("ordinal")))
        hits = []
        for score, document in scored[:k]:
            title, text, url, name = json.loads(bytes(document.get_first("passage")))  # pyright: ignore[reportArgumentType]
            hits.append(TextHit(title=title, text=text, url=url, score=score, id=name))
        return hits

    def _terms(self, query: str) -> list[str]:
        """The distinct terms of a query that occur in the index, in order; of many the rarest."""
        terms = list(dict.fromkeys(self._analyzer.analyze(fold(encodable(query[:_MAX_QUERY_CHARS])))))
        if len(terms) <= _MAX_TERMS:
            return terms
        frequencies = {term: self._searcher.doc_freq("words", term) for term in terms}
        occurring = [term for term in terms if frequencies[term]]
        rarest = set(sorted(occurring, key=frequencies.__getitem__)[:_MAX_TERMS])
        return [term for term in occurring if term in rarest]

    def _best(self, query: tantivy.Query, k: int) -> list[tuple[Any, tantivy.DocAddress]]:
        """At least the `k` best and all that tie with the last of them, as far as `_MOST_FETCHED`."""
        limit = k + _TIE_MARGIN
        while True:
            found = self._searcher.search(query, limit=limit, count=False).hits
            if len(found) < limit or found[-1][0] < found[k - 1][0] or limit >= _MOST_FETCHED:
                return found
            limit = min(4 * limit, max(_MOST_FETCHED, limit))


def check_folding(folder: Path, manifest: Manifest) -> None:
    """
    Raises:
        UserError: the passages of the index were folded otherwise than its queries would be.
    """
    if manifest.folding != FOLDING:
        raise UserError(
            f"{folder} was built by a version that folded words otherwise ({manifest.folding}, this one: {FOLDING}): "
            f"build it again with `mmsearch index text SOURCE --out {folder} --overwrite`"
        )


def passage_of(row: Row) -> Passage:
    """The passage of a row. `contents` of one line is a text without a title.

    Raises:
        UserError: the row holds no text.
    """
    if "contents" in row.values:
        title, text = title_and_text(row.text("contents"))
    else:
        title, text = one_line(row.text("title", "")), row.text("text")
    if not text.strip() and not title.strip():
        raise row.error("the passage is empty")
    number = row.values.get("id")
    name = str(number) if isinstance(number, int) and not isinstance(number, bool) else row.text("id", "")
    return encodable(title), encodable(text), encodable(row.text("url", "")) or None, encodable(name) or None
