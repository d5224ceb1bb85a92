"""What the search server is asked, and how it writes passages down: Search-R1's contract, with bounds."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.runtime import MAX_QUERY_CHARS
from mmsearch_trl.search.text.passages import contents


MAX_QUERIES = 512
MAX_TOP_K = 100
MAX_PASSAGE_CHARS = 20_000

Query = Annotated[str, StringConstraints(max_length=MAX_QUERY_CHARS)]
Queries = Annotated[list[Query], Field(max_length=MAX_QUERIES)]
Count = Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None
"""A number of passages; null or 0 is the server's default."""


class RetrieveRequest(BaseModel):
    """Of `/retrieve`. With `topk_rerank`, the best of `topk_retrieval` passages by the reranker."""

    queries: Queries
    topk: Count = None
    return_scores: bool = False
    topk_retrieval: Count = None
    topk_rerank: Count = None


class Passage(BaseModel):
    """A row of a corpus; what else it holds goes back as it came."""

    model_config = ConfigDict(extra="allow")
    contents: Annotated[str, StringConstraints(max_length=MAX_PASSAGE_CHARS)]


class Retrieved(BaseModel):
    """A passage as `/retrieve` gives it."""

    document: Passage


class RerankRequest(BaseModel):
    """Of `/rerank`: the passages of every query, in the order of the queries."""

    queries: Queries
    documents: list[Annotated[list[Passage | Retrieved], Field(max_length=MAX_TOP_K)]]
    rerank_topk: Count = None
    return_scores: bool = False

    @model_validator(mode="after")
    def _every_query_has_its_documents(self) -> "RerankRequest":
        if len(self.documents) != len(self.queries):
            raise ValueError(f"{len(self.queries)} queries came with {len(self.documents)} lists of documents")
        return self

    def passages(self) -> list[list[Passage]]:
        """The passages of every query, whichever way they were written."""
        return [[row.document if isinstance(row, Retrieved) else row for row in rows] for rows in self.documents]


class ImageRequest(BaseModel):
    """Of `/image_search`."""

    image: str
    k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 5


def document(hit: TextHit) -> dict[str, Any]:
    """A passage as a row of Search-R1's corpora: the title is the first line of `contents`."""
    return {"id": hit.id, "contents": contents(hit.title, hit.text)} | ({"url": hit.url} if hit.url else {})


def written(row: dict[str, Any], score: float | None, *, scored: bool) -> dict[str, Any]:
    """A passage of an answer, with its score where scores are asked for."""
    return {"document": row, "score": score} if scored else row
