"""What the search server is asked, and how it writes passages down: Search-R1's contract, with bounds.

A body is parsed only where it cannot be a tree of millions of values, and checked up to the first mistake: telling
all of them costs as much as there are. Half an emoji, which JSON can escape and no index can encode, is left out.
"""

import json
import math
import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.query import MAX_QUERY_CHARS
from mmsearch_trl.search.server_guard import Refusal
from mmsearch_trl.search.text.analysis import encodable
from mmsearch_trl.search.text.passages import contents


MAX_QUERIES = 512
MAX_TOP_K = 100
MAX_PAIRS = 5120
"""Passages that one request may have reranked."""
MAX_PASSAGE_CHARS = 20_000
MAX_DEPTH = 32
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")

ModelT = TypeVar("ModelT", bound=BaseModel)
Queries = Annotated[list[Any], Field(max_length=MAX_QUERIES)]
"""Each is looked at by itself (`query_of`): one that cannot be asked does not cost the others their answers."""
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

    @model_validator(mode="after")
    def _can_be_written_again(self) -> "Passage":
        if _deeper(self.model_extra, MAX_DEPTH):
            raise ValueError(f"a document may be nested {MAX_DEPTH} deep")
        return self


class Retrieved(BaseModel):
    """A passage as `/retrieve` gives it."""

    document: Passage


class RerankRequest(BaseModel):
    """Of `/rerank`: the passages of every query, in the order of the queries."""

    queries: Queries
    documents: Annotated[
        list[Annotated[list[Passage | Retrieved], Field(max_length=MAX_TOP_K, fail_fast=True)]],
        Field(max_length=MAX_QUERIES, fail_fast=True),
    ]
    rerank_topk: Count = None
    return_scores: bool = False

    @model_validator(mode="after")
    def _every_query_has_its_documents(self) -> "RerankRequest":
        if len(self.documents) != len(self.queries):
            raise ValueError(f"{len(self.queries)} queries came with {len(self.documents)} lists of documents")
        if (pairs := sum(map(len, self.documents))) > MAX_PAIRS:
            raise ValueError(f"{pairs} documents came, {MAX_PAIRS} are taken at a time")
        return self

    def passages(self) -> list[list[Passage]]:
        """The passages of every query, whichever way they were written."""
        return [[row.document if isinstance(row, Retrieved) else row for row in rows] for rows in self.documents]


class ImageRequest(BaseModel):
    """Of `/image_search`."""

    image: str
    k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 5


def parsed(model: type[ModelT], body: bytes, most_values: int) -> ModelT:
    """A request of this model.

    Args:
        most_values: Values that the body may hold, about.

    Raises:
        Refusal: it is no JSON, or not of the model; says what is wrong and repeats nothing of it.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > most_values:
        raise Refusal(413, "too_large", f"a request may hold {most_values} values here")
    try:
        values = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "invalid_json", f"the body is no JSON in UTF-8 ({type(error).__name__})") from None
    if _HALF_ESCAPED.search(body):
        values = json.loads(json.dumps(values, ensure_ascii=False).encode("utf-8", "ignore"))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise Refusal(422, "invalid_request", f"{place}: {first['msg']}") from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value has more levels of lists and objects than these."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels < 0 or any(_deeper(each, levels - 1) for each in inner))


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number is too large")
    return number


def query_of(value: Any) -> str:
    """One query of a request.

    Raises:
        Refusal: it is none that can be asked.
    """
    if not isinstance(value, str) or len(value) > MAX_QUERY_CHARS:
        raise Refusal(422, "invalid_request", f"a query is a text of at most {MAX_QUERY_CHARS} characters")
    return value


def document(hit: TextHit) -> dict[str, Any]:
    """A passage as a row of Search-R1's corpora: the title is the first line of `contents`."""
    row = {"id": hit.id, "contents": contents(hit.title, hit.text)} | ({"url": hit.url} if hit.url else {})
    return {key: None if value is None else encodable(value) for key, value in row.items()}


def written(row: dict[str, Any], score: float | None, *, scored: bool) -> dict[str, Any]:
    """A passage of an answer, with its score where scores are asked for."""
    return {"document": row, "score": score} if scored else row
