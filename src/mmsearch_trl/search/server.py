"""Search over HTTP: text by Search-R1's contract (`POST /retrieve`, `POST /rerank`), images by a small one.

Every client of Search-R1's servers can use it. Where those are wrong this one is right: without scores a query gets
its own documents, fewer hits than asked for give a shorter list, what is too much is refused and not tried; documents
are reranked by their own query alone, a query without any keeps its place, and they come back in the shape in which
`/retrieve` gives them. It answers from any backend, a bounded number of queries at a time; `/health` and `/metrics`
are beside it.

`/image_search` takes `{"image": PNG or JPEG in base64, "k": n}` and answers `{"hits": [{"title", "url", "score",
"thumbnail"}]}`, thumbnails as PNG in base64, null where there is none. `search/image/service.py` is its client.
"""

import asyncio
import base64
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import ImageHit, ImageQuery, TextHit
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.backend_client import call
from mmsearch_trl.search.calls.section import ImageConfig, TextConfig, open_backend
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.calls.validation import text_hits
from mmsearch_trl.search.image.service import png_base64
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.requests import ImageRequest, Passage, RerankRequest, RetrieveRequest, document, written
from mmsearch_trl.search.web.service import RETRIEVER_TOKEN


if TYPE_CHECKING:  # torch is imported only where a reranker is served
    from mmsearch_trl.search.text.reranker import Reranker

MAX_BODY = 40_000_000
_RERANKED_OF = 10
"""Passages that are retrieved to be reranked, where a request does not say."""
_NO_RERANKER = "no reranker is served here: start the server with --reranker MODEL"
_RETRY_AFTER_S = 1
_GRACE_S = 5

ResultT = TypeVar("ResultT")


class SearchServer:
    """The application, as FastAPI runs it.

    Args:
        text: Answers `/retrieve`; None leaves it out.
        image: Answers `/image_search`; None leaves it out.
        reranker: Answers `/rerank`; without one that is refused with what to do.
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
        reranker: "Reranker | None" = None,
        top_k: int = 3,
        token: str | None = None,
        concurrency: int = 32,
        waiting: int = 4096,
        timeout_s: float = 30.0,
    ) -> None:
        self._text, self._image, self._reranker, self._top_k = text, image, reranker, top_k
        self._slots = asyncio.Semaphore(concurrency)
        self._most = concurrency + waiting
        self._pending = 0
        self._timeout_s = timeout_s
        self._metrics = _Metrics()
        self.app = FastAPI(title="mmsearch search", docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_middleware(_Guard, token=token, metrics=self._metrics)
        if text is not None:
            self.app.post("/retrieve")(self.retrieve)
        if image is not None:
            self.app.post("/image_search")(self.image_search)
        self.app.post("/rerank")(self.rerank)
        self.app.get("/health")(self.health)
        self.app.get("/metrics")(self.metrics)

    async def retrieve(self, request: RetrieveRequest) -> Response:
        """The passages of every query, in the order of the queries; best first."""
        if request.topk_rerank and self._reranker is None:
            return _error(422, "invalid_query", _NO_RERANKER)
        answers = await self._answers(partial(self._passages, query, request) for query in request.queries)
        if isinstance(answers, Response):
            return answers
        scored = request.return_scores
        return JSONResponse(
            {"result": [[written(document(hit), hit.score, scored=scored) for hit in hits] for hits in answers]}
        )

    async def rerank(self, request: RerankRequest) -> Response:
        """The documents of every query, best first, as they came."""
        if self._reranker is None:
            return _error(404, "no_reranker", _NO_RERANKER)
        k = request.rerank_topk or self._top_k
        pairs = zip(request.queries, request.passages(), strict=True)
        answers = await self._answers(partial(self._ordered, self._reranker, *pair, k) for pair in pairs)
        if isinstance(answers, Response):
            return answers
        scored = request.return_scores
        return JSONResponse(
            {"result": [[written(row.model_dump(), score, scored=scored) for row, score in rows] for rows in answers]}
        )

    async def image_search(self, request: ImageRequest) -> Response:
        """Pages that show the image, best first."""
        assert self._image is not None
        try:
            image = await call_blocking(load_image, base64.b64decode(request.image, validate=True))
        except ValueError as error:
            return _error(422, "invalid_query", f"the image cannot be read: {error}")
        answers = await self._answers([partial(call, self._image, ImageQuery(image), request.k)])
        if isinstance(answers, Response):
            return answers
        return JSONResponse({"hits": await call_blocking(_images, answers[0])})

    async def health(self) -> dict[str, Any]:
        """What is served, by endpoint."""
        served = {"retrieve": self._text, "image_search": self._image, "rerank": self._reranker}
        return {"status": "ok"} | {
            name: {"backend": backend.name, "fingerprint": backend.fingerprint}
            for name, backend in served.items()
            if backend is not None
        }

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(self._pending), media_type=CONTENT_TYPE_LATEST)

    async def _answers(self, searches: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any] | Response:
        """What all searches gave, or the refusal that stands for them."""
        wanted = list(searches)
        if self._pending + len(wanted) > self._most:
            return _error(503, "busy", "too many queries are waiting", {"Retry-After": str(_RETRY_AFTER_S)})
        self._pending += len(wanted)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await asyncio.gather(*map(self._in_a_slot, wanted))
        except TimeoutError:
            return _error(504, "timeout", f"the search took longer than {self._timeout_s:g} s")
        except SearchError as error:
            return _error(500, error.failure.kind.value, error.failure.message)
        finally:
            self._pending -= len(wanted)
        self._metrics.answered(len(wanted), time.perf_counter() - start)
        return answers

    async def _in_a_slot(self, search: Callable[[], Awaitable[ResultT]]) -> ResultT:
        async with self._slots:
            return await search()

    async def _passages(self, query: str, request: RetrieveRequest) -> Sequence[TextHit]:
        assert self._text is not None
        if self._reranker is None or not request.topk_rerank:
            return text_hits(await call(self._text, query, request.topk or self._top_k))
        hits = text_hits(await call(self._text, query, request.topk_retrieval or _RERANKED_OF))
        texts = [document(hit)["contents"] for hit in hits]
        best = await self._reranker.best(query, texts, request.topk_rerank)
        return [replace(hits[place], score=score) for place, score in best]

    @staticmethod
    async def _ordered(
        reranker: "Reranker", query: str, rows: Sequence[Passage], k: int
    ) -> list[tuple[Passage, float]]:
        best = await reranker.best(query, [row.contents for row in rows], k)
        return [(rows[place], score) for place, score in best]


class _Guard:
    """Refuses what has no token, and a body that is too long, before it is read; counts what is answered.

    Not one of FastAPI's own middlewares, which start a task for every request and cost as much as a search by words.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: "_Metrics") -> None:
        self._app, self._token, self._metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if (refusal := self._refusal(scope["method"], scope["path"], Headers(scope=scope))) is not None:
            return await refusal(scope, receive, send)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.requests.labels(scope["path"] if status != 404 else "other", str(status)).inc()
            await send(message)

        await self._app(scope, receive, counting)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        if self._token is not None and path != "/health":
            given = headers.get("Authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return _error(401, "unauthorised", "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        length = headers.get("Content-Length")
        if method == "POST" and length is None:
            return _error(411, "length_required", "a request must say how long it is")
        if length is not None and (not length.isdigit() or int(length) > MAX_BODY):
            return _error(413, "too_large", f"a request may have {MAX_BODY} bytes")
        return None


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


def _images(hits: Sequence[ImageHit]) -> list[dict[str, Any]]:
    return [
        {
            "title": hit.title,
            "url": hit.url,
            "score": hit.score,
            "thumbnail": hit.thumbnail and png_base64(hit.thumbnail),
        }
        for hit in hits
    ]


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"kind": kind, "message": message}}, status_code=status, headers=headers)


def serve(
    *,
    text: TextConfig | None = None,
    image: ImageConfig | None = None,
    reranker: str | None = None,
    host: str,
    port: int,
) -> None:
    """Serve these backends, and this reranker, until the process is told to end.

    Raises:
        UserError: there is no such index or model, or a server that others can reach has no token.
    """
    import uvicorn

    token = os.environ.get(RETRIEVER_TOKEN)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise UserError(f"others can reach {host}: set {RETRIEVER_TOKEN} in the environment, here and for the clients")
    served = {
        "retrieve": None if text is None else open_backend(text),
        "image_search": None if image is None else open_backend(image),
        "rerank": _reranker(reranker),
    }
    for path, backend in served.items():
        if backend is not None:
            print(f"{backend.name} at http://{host}:{port}/{path}", flush=True)
    top_k = TextConfig.top_k if text is None else text.top_k
    server = SearchServer(
        served["retrieve"], served["image_search"], reranker=served["rerank"], top_k=top_k, token=token
    )
    uvicorn.run(server.app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_GRACE_S)


def _reranker(model: str | None) -> "Reranker | None":
    if model is None:
        return None
    from mmsearch_trl.search.text.reranker import Reranker

    return Reranker(model)
