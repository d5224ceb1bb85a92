"""SerpApi's two engines, against a stand-in with its documented shapes."""

import asyncio
import io
import json
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from misbehaving import Site, response, serving
from PIL import Image

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, TextHit
from mmsearch_trl.search.image.serpapi_lens import MAX_UPLOAD, SerpApiLens, encoded
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogle
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.serpapi import KEY_VARIABLE, SerpApi


KEY = "sesame-open"
PICTURE = Image.effect_noise((64, 48), 80).convert("RGB")


def answering(body: Any, **headers: str) -> bytes:
    return response(json.dumps(body).encode(), Content_Type="application/json", **headers)


def success(**content: Any) -> bytes:
    return answering({"search_metadata": {"status": "Success"}, **content})


def png() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return response(buffer.getvalue(), Content_Type="image/png")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def asking(answers: Mapping[str, bytes], work: Callable[[SerpApi, Fetcher, Site], Any]) -> tuple[Any, Site]:
    """What `work` comes to with an account at a stand-in, or its error; with what the stand-in was asked."""

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def run() -> tuple[Any, Site]:
        open_answers = dict(answers)
        async with serving(open_answers) as site:
            for path, answer in answers.items():
                open_answers[path] = answer.replace(b"PORT_", f"{site.port:05d}".encode())
            api = SerpApi(f"http://127.0.0.1:{site.port}")
            fetcher = Fetcher(allowed=lambda address: address == "127.0.0.1", lookup=here, ports=None, timeout_s=1.0)
            try:
                return await work(api, fetcher, site), site
            except SearchError as error:
                assert KEY not in "".join(traceback.format_exception(error))
                return error.failure.kind, site
            finally:
                await api.close()
                await fetcher.close()

    return asyncio.run(run())


def google(answer: bytes, k: int = 3) -> Any:
    return asking({"/search.json": answer}, lambda api, fetcher, site: SerpApiGoogle(api).search("who", k))[0]


def lens(matches: Any, k: int = 3, **answers: bytes) -> tuple[Any, Site]:
    given = {
        "/image": answering({"image_id": "abc"}),
        "/search.json": success(visual_matches=matches),
        "/good.png": png(),
        "/bad.png": response(b"no image", Content_Type="image/png"),
    } | answers
    return asking(given, lambda api, fetcher, site: SerpApiLens(api, fetcher).search(ImageQuery(PICTURE), k))


def test_google_s_results_are_titles_snippets_and_addresses() -> None:
    rows = [
        {"position": 1, "title": "Velm", "snippet": "A town.", "link": "http://a.example"},
        {"title": "Only"},
        {},
        3,
    ]
    assert google(success(organic_results=rows)) == [
        TextHit("Velm", "A town.", "http://a.example"),
        TextHit("Only", ""),
    ]
    assert google(success(organic_results=rows), k=1) == [TextHit("Velm", "A town.", "http://a.example")]


@pytest.mark.parametrize(
    "content",
    [
        {"error": "Google hasn't returned any results for this query."},
        {"organic_results": []},
        {"organic_results": None},
        {"organic_results": {"a": 1}},
        {"organic_results": [None, 3, "x", {"title": 5}]},
        {},
    ],
)
def test_an_empty_search_is_a_success_without_hits(content: dict[str, Any]) -> None:
    assert google(success(**content)) == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (answering({"search_metadata": {"status": "Error"}, "error": "x"}), FailureKind.UNAVAILABLE),
        (answering({"error": "Invalid API key. " + KEY}), FailureKind.UNAVAILABLE),
        (answering([]), FailureKind.BAD_RESPONSE),
        (response(b"Invalid API key: " + KEY.encode(), status="401 Unauthorized"), FailureKind.KEY_REFUSED),
        (
            response(b'{"error": "Your account has run out of searches."}', status="429 Too Many Requests"),
            FailureKind.QUOTA_SPENT,
        ),
        (
            response(b'{"error": "You are exceeding 1000 searches per hour."}', status="429 Too Many Requests"),
            FailureKind.RATE_LIMITED,
        ),
    ],
)
def test_failures_have_their_kind_and_hide_the_key(answer: bytes, kind: FailureKind) -> None:
    assert google(answer) is kind


def test_lens_uploads_the_picture_and_brings_titles_with_thumbnails() -> None:
    matches = [
        {"title": "Velm", "link": "http://a.example", "thumbnail": "http://t.example:PORT_/good.png"},
        {"title": "Broken", "thumbnail": "http://t.example:PORT_/bad.png"},
        {"title": "None"},
        {"thumbnail": "http://t.example:PORT_/good.png"},
    ]
    hits, site = lens(matches, k=4)
    assert [(hit.title, hit.url, hit.thumbnail and hit.thumbnail.size) for hit in hits] == [
        ("Velm", "http://a.example", PICTURE.size),
        ("Broken", None, None),
        ("None", None, None),
        ("", None, PICTURE.size),
    ]
    assert site.requests[0] == "/image"
    assert "engine=google_lens" in site.requests[1] and "image_id=abc" in site.requests[1]


def test_a_match_without_title_and_picture_is_left_out_for_the_next() -> None:
    matches = [{"thumbnail": "http://t.example:PORT_/bad.png"}, {"link": "x"}, {"title": "A"}, {"title": "B"}]
    hits, _ = lens(matches, k=2)
    assert hits == [ImageHit("A"), ImageHit("B")]


def test_a_thumbnail_in_the_local_network_is_not_fetched() -> None:
    hits, site = lens([{"title": "A", "thumbnail": "http://10.0.0.1/a.png"}])
    assert hits == [ImageHit("A")] and len(site.requests) == 2


@pytest.mark.parametrize("body", [{}, {"image_id": None}, {"image_id": ""}, []])
def test_a_picture_without_an_id_is_a_bad_response(body: Any) -> None:
    assert lens([], 3, **{"/image": answering(body)})[0] is FailureKind.BAD_RESPONSE


@pytest.mark.parametrize("size", [(8, 8), (4000, 3000), (5000, 20)])
def test_any_picture_fits_into_an_upload(size: tuple[int, int]) -> None:
    data = encoded(Image.effect_noise(size, 120).convert("RGB"))
    assert len(data) <= MAX_UPLOAD
    assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_an_account_is_checked_without_a_search() -> None:
    async def check(api: SerpApi, fetcher: Fetcher, site: Site) -> str:
        await api.check()
        return "good"

    assert asking({"/account.json": answering({"total_searches_left": 5})}, check)[0] == "good"
    assert asking({"/account.json": answering({"total_searches_left": 0})}, check)[0] is FailureKind.QUOTA_SPENT
    refused = response(status="401 Unauthorized")
    assert asking({"/account.json": refused}, check)[0] is FailureKind.KEY_REFUSED


def test_a_missing_key_is_named_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ValueError, match=f"set {KEY_VARIABLE} in the environment"):
        SerpApi()
