"""Search over HTTP: text by Search-R1's contract (`POST /retrieve`), pictures by a small one (`POST /image_search`).

Every client of Search-R1's server can use it. Where that server is wrong this one is right: without scores a query
gets its own documents, fewer hits than asked for give a shorter list, and what is too much is refused and not tried.
It answers from any backend, a bounded number of queries at a time; `/health` and `/metrics` are beside it.

`/image_search` takes `{"image": PNG or JPEG in base64, "k": n}` and answers `{"hits": [{"title", "url", "score",
"thumbnail"}]}`, thumbnails as PNG in base64, null where there is none. `search/image/service.py` is its client.
"""

import asyncio
import base64
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field, StringConstraints

from mmsearch_trl.search.asking import call
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.image.loading import load_image
from mmsearch_trl.search.image.service import png_base64
from mmsearch_trl.search.opening import open_image, open_text
from mmsearch_trl.search.runtime import MAX_QUERY_CHARS
from mmsearch_trl.search.text.passages import contents
from mmsearch_trl.search.text.retriever import TOKEN_VARIABLE
from mmsearch_trl.search.threads import call_blocking
from mmsearch_trl.search.types import Answer, ImageHit, ImageQuery, SearchBackend, SearchError, TextHit


MAX_QUERIES = 512
MAX_TOP_K = 100
MAX_BODY = 40_000_000
_RETRY_AFTER_S = 1
_GRACE_S = 5

Query = Annotated[str, StringConstraints(max_length=MAX_QUERY_CHARS)]


class RetrieveRequest(BaseModel):
    """Of `/retrieve`. `topk` of null or 0 is the server's default."""

    queries: Annotated[list[Query], Field(max_length=MAX_QUERIES)]
    topk: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    return_scores: bool = False


class ImageRequest(BaseModel):
    """Of `/image_search`."""

    image: str
    k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 5


class SearchServer:
    """The application, as FastAPI runs it.

    Args:
        text: Answers `/retrieve`; None leaves it out.
        image: Answers `/image_search`; None leaves it out.
        top_k: Where a request for text does not say.
        token: A bearer token without which everything but `/health` is refused; None for none.
        concurrency: Queries under way at a time.
        waiting: Queries that may wait for their turn; a request beyond is refused with 503.
        timeout_s: Seconds that a request may take; 504 after.
    """

    def __init__(
        self,
        text: SearchBackend[str] | None,
        image: SearchBackend[ImageQuery] | None,
        *,
        top_k: int = 3,
        token: str | None = None,
        concurrency: int = 8,
        waiting: int = 4096,
        timeout_s: float = 30.0,
    ) -> None:
        self._text, self._image, self._top_k = text, image, top_k
        self._token = token
        self._slots = asyncio.Semaphore(concurrency)
        self._most = concurrency + waiting
        self._pending = 0
        self._timeout_s = timeout_s
        self._metrics = _Metrics()
        self.app = FastAPI(title="mmsearch search", docs_url=None, redoc_url=None, openapi_url=None)
        self.app.middleware("http")(self._guard)
        if text is not None:
            self.app.post("/retrieve")(self.retrieve)
        if image is not None:
            self.app.post("/image_search")(self.image_search)
        self.app.get("/health")(self.health)
        self.app.get("/metrics")(self.metrics)

    async def retrieve(self, request: RetrieveRequest) -> Response:
        """The passages of every query, in the order of the queries; best first."""
        shape = _scored if request.return_scores else _document
        answers = await self._answers(self._text, request.queries, request.topk or self._top_k)
        if isinstance(answers, Response):
            return answers
        return JSONResponse({"result": [[shape(hit) for hit in hits] for hits in answers]})

    async def image_search(self, request: ImageRequest) -> Response:
        """Pages that show the picture, best first."""
        try:
            image = await call_blocking(load_image, base64.b64decode(request.image, validate=True))
        except ValueError as error:
            return _error(422, "invalid_query", f"the image cannot be read: {error}")
        answers = await self._answers(self._image, [ImageQuery(image)], request.k)
        if isinstance(answers, Response):
            return answers
        return JSONResponse({"hits": await call_blocking(_pictures, answers[0])})

    async def health(self) -> dict[str, Any]:
        """What is served, by endpoint."""
        served = {"retrieve": self._text, "image_search": self._image}
        return {"status": "ok"} | {
            name: {"backend": backend.name, "fingerprint": backend.fingerprint}
            for name, backend in served.items()
            if backend is not None
        }

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(self._pending), media_type=CONTENT_TYPE_LATEST)

    async def _answers(self, backend: Any, queries: Sequence[Any], k: int) -> list[Any] | Response:
        """The answers of all queries, or the refusal that stands for them."""
        count = len(queries)
        if self._pending + count > self._most:
            return _error(503, "busy", "too many queries are waiting", {"Retry-After": str(_RETRY_AFTER_S)})
        self._pending += count
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await asyncio.gather(*(self._search(backend, query, k) for query in queries))
        except TimeoutError:
            return _error(504, "timeout", f"the search took longer than {self._timeout_s:g} s")
        except SearchError as error:
            return _error(500, error.failure.kind.value, error.failure.message)
        finally:
            self._pending -= count
        self._metrics.answered(count, time.perf_counter() - start)
        return answers

    async def _search(self, backend: Any, query: Any, k: int) -> Answer:
        async with self._slots:
            return await call(backend, query, k)

    async def _guard(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse what has no token, and a body that is too long, before it is read."""
        if self._token is not None and request.url.path != "/health":
            given = request.headers.get("Authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return _error(401, "unauthorised", "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        length = request.headers.get("Content-Length")
        if request.method == "POST" and length is None:
            return _error(411, "length_required", "a request must say how long it is")
        if length is not None and (not length.isdigit() or int(length) > MAX_BODY):
            return _error(413, "too_large", f"a request may have {MAX_BODY} bytes")
        response = await handle(request)
        path = request.url.path if response.status_code != 404 else "other"
        self._metrics.requests.labels(path, str(response.status_code)).inc()
        return response


class _Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("search_requests", "Requests.", ["path", "status"], registry=self._registry)
        self._queries = Counter("search_queries", "Queries answered.", registry=self._registry)
        self._seconds = Histogram("search_request_seconds", "Seconds of a request.", registry=self._registry)
        self._pending = Gauge("search_pending_queries", "Queries under way or waiting.", registry=self._registry)

    def answered(self, queries: int, seconds: float) -> None:
        self._queries.inc(queries)
        self._seconds.observe(seconds)

    def text(self, pending: int) -> bytes:
        self._pending.set(pending)
        return generate_latest(self._registry)


def _document(hit: TextHit) -> dict[str, Any]:
    """A passage as a row of Search-R1's corpora: the title is the first line of `contents`."""
    return {"id": hit.id, "contents": contents(hit.title, hit.text)} | ({"url": hit.url} if hit.url else {})


def _pictures(hits: Sequence[ImageHit]) -> list[dict[str, Any]]:
    return [
        {
            "title": hit.title,
            "url": hit.url,
            "score": hit.score,
            "thumbnail": hit.thumbnail and png_base64(hit.thumbnail),
        }
        for hit in hits
    ]


def _scored(hit: TextHit) -> dict[str, Any]:
    return {"document": _document(hit), "score": hit.score}


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"kind": kind, "message": message}}, status_code=status, headers=headers)


def serve(config: SearchConfig, *, host: str, port: int, top_k: int = 3) -> None:
    """Serve the searches of `config` until the process is told to end.

    Raises:
        ImportError: the server's packages are not installed.
        ValueError: there is no such index, or a server that others can reach has no token.
    """
    import uvicorn

    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(f"others can reach {host}: set {TOKEN_VARIABLE} in the environment, here and for the clients")
    text, image = open_text(config, None), open_image(config)
    served = {"retrieve": text, "image_search": image}
    for path, backend in served.items():
        if backend is not None:
            print(f"{backend.name} at http://{host}:{port}/{path}", flush=True)
    if text is None and image is None:
        raise ValueError("name the index that is served, such as --text_index DIR")
    server = SearchServer(text, image, top_k=top_k, token=token)
    uvicorn.run(server.app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
