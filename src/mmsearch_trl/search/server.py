"""Search over HTTP: text by Search-R1's contract (`POST /retrieve`, `POST /rerank`), images by a small one.

Every client of Search-R1's servers can use it. Where those are wrong this one is right: without scores a query gets
its own documents, fewer hits than asked for give a shorter list, what is too much is refused and not tried; documents
are reranked by their own query alone, a query without any keeps its place, and they come back in the shape in which
`/retrieve` gives them. It answers from any backend, a bounded number of queries at a time; `/health` and `/metrics`
are beside it.

`/image_search` takes `{"image": PNG or JPEG in base64, "k": n}` and answers `{"hits": [{"title", "url", "score",
"thumbnail"}]}`, thumbnails as PNG in base64, null where there is none. `search/image/service.py` is its client.

What a client sends is refused small and alike, by `server_guard.py` or by `requests.py`; a 500 is the backend's
failure or a defect. Among other queries, one that cannot be asked gets an empty list, which clients of Search-R1's
contract understand, and `errors`, a list beside `result`, says how a request of its own would have been refused, and
null for the others. A failure of the backend is never an empty list: the whole request fails.
"""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, TextHit
from mmsearch_trl.core.ports import listening_at
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.backend_client import call
from mmsearch_trl.search.calls.section import ImageConfig, TextConfig, open_backend
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.calls.validation import image_hits, text_hits
from mmsearch_trl.search.image.service import png_base64
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.requests import (
    ImageRequest,
    Passage,
    RerankRequest,
    RetrieveRequest,
    document,
    parsed,
    query_of,
    written,
)
from mmsearch_trl.search.server_guard import HANDLERS, RETRY_AFTER_S, Guard, GuardedServer, Metrics, Refusal, token_for
from mmsearch_trl.search.text.analysis import encodable
from mmsearch_trl.search.web.service import RETRIEVER_TOKEN


if TYPE_CHECKING:  # torch is imported only where a reranker is served
    from mmsearch_trl.search.text.reranker import Reranker

MAX_BODY = 40_000_000
_LIMITS = {"/retrieve": 8_000_000, "/rerank": 16_000_000, "/image_search": MAX_BODY, "/health": 0, "/metrics": 0}
"""Bytes of a body, by path."""
_VALUES = {"/retrieve": 100_000, "/rerank": 300_000, "/image_search": 100}
"""Values of a body, about, by path: queries and passages hold commas and brackets as well."""
_DECODED_AT_ONCE = 4
"""Images; each may take 100 MB."""
_RERANKED_OF = 10
"""Passages that are retrieved to be reranked, where a request does not say."""
_NO_RERANKER = "no reranker is served here: start the server with --reranker MODEL"
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
        body_timeout_s: Seconds within which its body has to be here; 408 after.
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
        body_timeout_s: float = 30.0,
    ) -> None:
        self._text, self._image, self._reranker, self._top_k = text, image, reranker, top_k
        self._slots = asyncio.Semaphore(concurrency)
        self._most = concurrency + waiting
        self._pending = 0
        self._timeout_s = timeout_s
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._metrics = Metrics()
        routes = [
            Route("/rerank", self.rerank, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        if text is not None:
            routes.append(Route("/retrieve", self.retrieve, methods=["POST"]))
        if image is not None:
            routes.append(Route("/image_search", self.image_search, methods=["POST"]))
        self.app = Guard(
            Starlette(routes=routes, exception_handlers=HANDLERS),
            self._metrics,
            token=token,
            limits=_LIMITS,
            body_timeout_s=body_timeout_s,
        )

    async def retrieve(self, request: Request) -> Response:
        """The passages of every query, in the order of the queries; best first."""
        wanted = parsed(RetrieveRequest, await request.body(), _VALUES["/retrieve"])
        if wanted.topk_rerank and self._reranker is None:
            raise Refusal(422, "invalid_query", _NO_RERANKER)
        answers = await self._answers(partial(self._passages, query, wanted) for query in wanted.queries)
        scored = wanted.return_scores
        return _results(answers, lambda hit: written(document(hit), hit.score, scored=scored))

    async def rerank(self, request: Request) -> Response:
        """The documents of every query, best first, as they came."""
        if self._reranker is None:
            raise Refusal(404, "no_reranker", _NO_RERANKER)
        wanted = parsed(RerankRequest, await request.body(), _VALUES["/rerank"])
        k = wanted.rerank_topk or self._top_k
        pairs = zip(wanted.queries, wanted.passages(), strict=True)
        answers = await self._answers(partial(self._ordered, self._reranker, *pair, k) for pair in pairs)
        scored = wanted.return_scores
        return _results(answers, lambda row: written(row[0].model_dump(), row[1], scored=scored))

    async def image_search(self, request: Request) -> Response:
        """Pages that show the image, best first."""
        wanted = parsed(ImageRequest, await request.body(), _VALUES["/image_search"])
        [hits] = await self._answers([partial(self._pages, wanted)])
        return JSONResponse({"hits": await call_blocking(_images, hits)})

    async def health(self, request: Request) -> Response:
        """What is served, by endpoint."""
        served = {"retrieve": self._text, "image_search": self._image, "rerank": self._reranker}
        return JSONResponse(
            {"status": "ok"}
            | {
                name: {"backend": backend.name, "fingerprint": backend.fingerprint}
                for name, backend in served.items()
                if backend is not None
            }
        )

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(self._pending), media_type=CONTENT_TYPE_LATEST)

    async def _answers(self, searches: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
        """What all searches gave, or the `Refusal` of one that cannot be asked.

        Raises:
            Refusal: too many are waiting, one took too long or failed, or none can be asked.
        """
        wanted = list(searches)
        if self._pending + len(wanted) > self._most:
            raise Refusal(503, "busy", "too many queries are waiting", {"Retry-After": str(RETRY_AFTER_S)})
        self._pending += len(wanted)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await asyncio.gather(*map(self._in_a_slot, wanted))
        except TimeoutError:
            raise Refusal(504, "timeout", f"the search took longer than {self._timeout_s:g} s") from None
        except SearchError as error:
            raise Refusal(500, error.failure.kind.value, error.failure.message) from None
        finally:
            self._pending -= len(wanted)
        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        if refused and len(refused) == len(answers):
            raise refused[0]
        self._metrics.answered(len(wanted), time.perf_counter() - start)
        return answers

    async def _in_a_slot(self, search: Callable[[], Awaitable[ResultT]]) -> ResultT | Refusal:
        async with self._slots:
            try:
                return await search()
            except Refusal as refusal:
                return refusal
            except SearchError as error:
                if error.failure.kind is not FailureKind.INVALID_QUERY:
                    raise
                return Refusal(422, error.failure.kind.value, error.failure.message)

    async def _pages(self, request: ImageRequest) -> Sequence[ImageHit]:
        assert self._image is not None
        try:
            async with self._decoding:
                image = await call_blocking(load_image, base64.b64decode(request.image, validate=True))
        except ValueError as error:
            raise Refusal(422, "invalid_query", f"the image cannot be read: {error}") from None
        return image_hits(await call(self._image, ImageQuery(image), request.k), request.k)

    async def _passages(self, given: Any, request: RetrieveRequest) -> Sequence[TextHit]:
        assert self._text is not None
        query = query_of(given)
        if self._reranker is None or not request.topk_rerank:
            k = request.topk or self._top_k
            return text_hits(await call(self._text, query, k), k)
        depth = request.topk_retrieval or _RERANKED_OF
        hits = text_hits(await call(self._text, query, depth), depth)
        texts = [document(hit)["contents"] for hit in hits]
        best = await self._reranker.best(query, texts, request.topk_rerank)
        return [replace(hits[place], score=score) for place, score in best]

    @staticmethod
    async def _ordered(
        reranker: "Reranker", given: Any, rows: Sequence[Passage], k: int
    ) -> list[tuple[Passage, float]]:
        best = await reranker.best(query_of(given), [row.contents for row in rows], k)
        return [(rows[place], score) for place, score in best]


def _results(answers: Sequence[Any], write: Callable[[Any], Any]) -> Response:
    """The rows of every query, and of those that cannot be asked, why."""
    content: dict[str, Any] = {"result": [[] if isinstance(a, Refusal) else [*map(write, a)] for a in answers]}
    errors = [answer.written() if isinstance(answer, Refusal) else None for answer in answers]
    return JSONResponse(content | ({"errors": errors} if any(errors) else {}))


def _images(hits: Sequence[ImageHit]) -> list[dict[str, Any]]:
    return [
        {
            "title": encodable(hit.title),
            "url": hit.url and encodable(hit.url),
            "score": hit.score,
            "thumbnail": hit.thumbnail and png_base64(hit.thumbnail),
        }
        for hit in hits
    ]


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
        UserError: the port is taken, there is no such index or model, or a server that others can reach has no token.
    """
    import uvicorn

    token = token_for(host, RETRIEVER_TOKEN)
    bound = listening_at(host, port)
    served = {
        "retrieve": None if text is None else open_backend(text),
        "image_search": None if image is None else open_backend(image),
        "rerank": _reranker(reranker),
    }
    for path, backend in served.items():
        if backend is not None:
            print(f"{backend.name} at http://{host}:{bound.getsockname()[1]}/{path}", flush=True)
    top_k = TextConfig.top_k if text is None else text.top_k
    server = SearchServer(
        served["retrieve"], served["image_search"], reranker=served["rerank"], top_k=top_k, token=token
    )
    config = uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
    GuardedServer(config).run(sockets=[bound])


def _reranker(model: str | None) -> "Reranker | None":
    if model is None:
        return None
    from mmsearch_trl.search.text.reranker import Reranker

    return Reranker(model)
