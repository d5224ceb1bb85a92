"""A retrieval server with Search-R1's contract: `POST /retrieve`, and beside it `/health` and `/metrics`.

Every client of Search-R1's server can use it. Where that server is wrong this one is right: without scores a query
gets its own documents, fewer hits than asked for give a shorter list, and what is too much is refused and not tried.
It answers from any text backend; the work runs on threads, a bounded number of queries at a time.
"""

import asyncio
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
from mmsearch_trl.search.opening import open_text
from mmsearch_trl.search.text.retriever import TOKEN_VARIABLE
from mmsearch_trl.search.types import SearchBackend, SearchError, TextHit


MAX_QUERIES = 512
MAX_QUERY_CHARS = 2000
MAX_TOP_K = 100
MAX_BODY = 4_000_000
_RETRY_AFTER_S = 1
_GRACE_S = 5

Query = Annotated[str, StringConstraints(max_length=MAX_QUERY_CHARS)]


class RetrieveRequest(BaseModel):
    """Of `/retrieve`. `topk` of null or 0 is the server's default."""

    queries: Annotated[list[Query], Field(max_length=MAX_QUERIES)]
    topk: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    return_scores: bool = False


class RetrievalServer:
    """The application, as FastAPI runs it.

    Args:
        backend: What answers.
        top_k: Where a request does not say.
        token: A bearer token without which `/retrieve` is refused; None for none.
        concurrency: Queries under way at a time.
        waiting: Queries that may wait for their turn; a request beyond is refused with 503.
        timeout_s: Seconds that a request may take; 504 after.
    """

    def __init__(
        self,
        backend: SearchBackend[str],
        *,
        top_k: int = 3,
        token: str | None = None,
        concurrency: int = 8,
        waiting: int = 4096,
        timeout_s: float = 30.0,
    ) -> None:
        self._backend, self._top_k = backend, top_k
        self._token = token
        self._slots = asyncio.Semaphore(concurrency)
        self._most = concurrency + waiting
        self._pending = 0
        self._timeout_s = timeout_s
        self._metrics = _Metrics()
        self.app = FastAPI(title="mmsearch retriever", docs_url=None, redoc_url=None, openapi_url=None)
        self.app.middleware("http")(self._guard)
        self.app.post("/retrieve")(self.retrieve)
        self.app.get("/health")(self.health)
        self.app.get("/metrics")(self.metrics)

    async def retrieve(self, request: RetrieveRequest) -> Response:
        """The passages of every query, in the order of the queries; best first."""
        count = len(request.queries)
        if self._pending + count > self._most:
            return _error(503, "busy", "too many queries are waiting", {"Retry-After": str(_RETRY_AFTER_S)})
        self._pending += count
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.gather(*(self._search(query, request.topk) for query in request.queries))
        except TimeoutError:
            return _error(504, "timeout", f"the search took longer than {self._timeout_s:g} s")
        except SearchError as error:
            return _error(500, error.failure.kind.value, error.failure.message)
        finally:
            self._pending -= count
        self._metrics.answered(count, time.perf_counter() - start)
        shape = _scored if request.return_scores else _document
        return JSONResponse({"result": [[shape(hit) for hit in hits] for hits in found]})

    async def health(self) -> dict[str, Any]:
        """What is served; a client puts the fingerprint into the key of what it keeps."""
        return {
            "status": "ok",
            "backend": self._backend.name,
            "fingerprint": self._backend.fingerprint,
        }

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(self._pending), media_type=CONTENT_TYPE_LATEST)

    async def _search(self, query: str, top_k: int | None) -> Sequence[TextHit]:
        async with self._slots:
            return await call(self._backend, query, top_k or self._top_k)  # pyright: ignore[reportReturnType]

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
        self.requests = Counter("retriever_requests", "Requests.", ["path", "status"], registry=self._registry)
        self._queries = Counter("retriever_queries", "Queries answered.", registry=self._registry)
        self._seconds = Histogram("retriever_request_seconds", "Seconds of a request.", registry=self._registry)
        self._pending = Gauge("retriever_pending_queries", "Queries under way or waiting.", registry=self._registry)

    def answered(self, queries: int, seconds: float) -> None:
        self._queries.inc(queries)
        self._seconds.observe(seconds)

    def text(self, pending: int) -> bytes:
        self._pending.set(pending)
        return generate_latest(self._registry)


def _document(hit: TextHit) -> dict[str, Any]:
    """A passage as a row of Search-R1's corpora: the title is the first line of `contents`."""
    contents = f"{hit.title}\n{hit.text}" if hit.title else hit.text
    return {"id": hit.id, "contents": contents} | ({"url": hit.url} if hit.url else {})


def _scored(hit: TextHit) -> dict[str, Any]:
    return {"document": _document(hit), "score": hit.score}


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"kind": kind, "message": message}}, status_code=status, headers=headers)


def serve(config: SearchConfig, *, host: str, port: int, top_k: int) -> None:
    """Serve the text search of `config` until the process is told to end.

    Raises:
        ImportError: the server's packages are not installed.
        ValueError: there is no such index, or a server that others can reach has no token.
    """
    import uvicorn

    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(f"others can reach {host}: set {TOKEN_VARIABLE} in the environment, here and for the clients")
    backend = open_text(config, None)
    if backend is None:
        raise ValueError("name what is served: --text_index DIR, --text_dense DIR, or both")
    server = RetrievalServer(backend, top_k=top_k, token=token)
    print(f"{backend.name} at http://{host}:{port}/retrieve", flush=True)
    uvicorn.run(server.app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
