"""Calls to a configured JSON service: every answer is JSON or a typed failure, and no message holds the key."""

import asyncio
import json
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from misbehaving import Answer, Site, Write, response, serving

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.web.service import Service, seconds_of


KEY = "sesame-open"
LIMIT = 20_000


def answering(body: Any, **headers: str) -> bytes:
    return response(json.dumps(body).encode(), Content_Type="application/json", **headers)


def call(answer: Answer, path: str = "/search", **options: Any) -> tuple[Any, Site, Service]:
    """What one call came to: the JSON or the error; with what the server saw."""

    async def run() -> tuple[Any, Site, Service]:
        async with serving(answer) as site:
            service = Service(
                f"http://127.0.0.1:{site.port}/",
                headers={"Authorization": f"Bearer {KEY}"},
                max_bytes=LIMIT,
                **options,
            )
            try:
                async with asyncio.timeout(5):
                    return await service.get(path, {"q": "a b", "api_key": KEY}), site, service
            except SearchError as error:
                return error, site, service
            finally:
                await service.close()

    return asyncio.run(run())


def test_an_answer_is_its_json() -> None:
    outcome, site, _ = call(answering({"hits": [1]}))
    assert outcome == {"hits": [1]} and site.requests == [f"/search?q=a+b&api_key={KEY}"]


def test_what_is_posted_arrives() -> None:
    seen = []

    async def run() -> Any:
        async def echo(write: Write) -> None:
            await write(answering({"ok": True}))

        async with serving(echo) as site:
            service = Service(f"http://127.0.0.1:{site.port}")
            answers = await asyncio.gather(*(service.post("/retrieve", json={"queries": ["q"]}) for _ in range(50)))
            await service.close()
            seen.extend(site.requests)
            return answers

    assert asyncio.run(run()) == [{"ok": True}] * 50 and seen == ["/retrieve"] * 50


async def _endless(write: Write) -> None:
    await write(response(Content_Length=""))
    while True:
        await write(b"x" * 4096)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (response(status="400 Bad Request"), FailureKind.BLOCKED),
        (response(status="401 Unauthorized"), FailureKind.KEY_REFUSED),
        (response(status="402 Payment Required"), FailureKind.QUOTA_SPENT),
        (response(status="403 Forbidden"), FailureKind.KEY_REFUSED),
        (response(status="404 Not Found"), FailureKind.BLOCKED),
        (response(status="408 Timeout"), FailureKind.TIMEOUT),
        (response(status="422 Unprocessable"), FailureKind.BLOCKED),
        (response(status="429 Too Many Requests"), FailureKind.RATE_LIMITED),
        (response(b"Your account has run out of searches.", status="429 Too Many"), FailureKind.QUOTA_SPENT),
        (response(status="500 Oops"), FailureKind.UNAVAILABLE),
        (response(status="503 Busy"), FailureKind.UNAVAILABLE),
        (response(status="504 Gateway Timeout"), FailureKind.TIMEOUT),
        (response(status="302 Found", Location="http://other.example/"), FailureKind.BLOCKED),
        (response(b"<html>not JSON</html>"), FailureKind.BAD_RESPONSE),
        (response(b"\xff\xfe\x00"), FailureKind.BAD_RESPONSE),
        (response(b""), FailureKind.BAD_RESPONSE),
        (response(b"[" * 10_000), FailureKind.BAD_RESPONSE),
        (response(b"{}", Content_Length="50"), FailureKind.BAD_RESPONSE),
        (response(b"x" * (LIMIT + 1)), FailureKind.TOO_LARGE),
        (_endless, FailureKind.TOO_LARGE),
        (b"", FailureKind.UNAVAILABLE),
        (b"garbage\r\n\r\n", FailureKind.BAD_RESPONSE),
    ],
)
def test_a_bad_answer_is_a_typed_failure_without_the_key(answer: Answer, kind: FailureKind) -> None:
    outcome, site, _ = call(answer, quota_words="run out of searches")
    assert isinstance(outcome, SearchError) and outcome.failure.kind is kind, outcome
    assert KEY not in repr(outcome) + "".join(traceback.format_exception(outcome))
    # aiohttp itself asks once more where the connection breaks before an answer has begun.
    assert len(site.requests) == (2 if answer == b"" else 1)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Busy"])
def test_a_pause_that_the_service_asks_for_is_told(status: str) -> None:
    outcome, _, _ = call(response(status=status, Retry_After="7"))
    assert isinstance(outcome, SearchError) and outcome.retry_after == 7.0


def test_a_service_that_is_not_there_is_unavailable() -> None:
    async def run() -> SearchError:
        service = Service("http://127.0.0.1:9")
        with pytest.raises(SearchError) as caught:
            await service.get("/search", {"api_key": KEY})
        await service.close()
        return caught.value

    error = asyncio.run(run())
    assert error.failure.kind is FailureKind.UNAVAILABLE and KEY not in error.failure.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("5", 5.0), (" 12 ", 12.0), ("-3", None), ("soon", None), ("", None), ("9" * 400, 999999999.0)],
)
def test_retry_after_in_seconds(header: str | None, seconds: float | None) -> None:
    assert seconds_of(header) == seconds


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < (seconds_of(later) or 0) <= 90
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "retriever:8000"])
def test_an_address_without_a_scheme_is_told_to_be_none(url: str) -> None:
    async def run() -> None:
        service = Service(url)
        try:
            await service.get("/search")
        finally:
            await service.close()

    with pytest.raises(SearchError, match="does not begin with http:// or https://"):
        asyncio.run(run())
