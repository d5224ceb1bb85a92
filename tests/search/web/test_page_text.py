"""Reading pages in processes of their own."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import psutil
import pytest

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.search.web import page_text
from mmsearch_trl.search.web.fetch import Fetched
from mmsearch_trl.search.web.page_text import PageReader, PageText


ResultT = TypeVar("ResultT")

ARTICLE = (
    "The Velm tower was built in 1880 by the town of Harwick. It is forty metres high and made of grey stone. "
    "Its bell was cast in Oakham and rings at noon, as the people of the valley can hear to this day."
)
HTML = (
    "<html><head><title>Velm tower</title></head><body><nav><a href='/a'>Home</a><a href='/b'>Log in</a></nav>"
    f"<article><h1>Velm tower</h1><p>{ARTICLE}</p><p>{ARTICLE[::-1]}</p></article><script>alert('no')</script>"
    "<footer>Copyright notice</footer></body></html>"
)


def page(body: str | bytes, content_type: str = "text/html", charset: str | None = "utf-8") -> Fetched:
    return Fetched("http://pages.example/", content_type, charset, body if isinstance(body, bytes) else body.encode())


def reading(work: Callable[[PageReader], Awaitable[ResultT]], **options: float) -> ResultT:
    """Run `work` with a reader, and see that no process of its is left."""

    async def run() -> ResultT:
        reader = PageReader(**options)  # pyright: ignore[reportArgumentType]
        try:
            return await work(reader)
        finally:
            reader.close()

    before = set(_children())
    result = asyncio.run(run())
    assert set(_children()) <= before
    return result


Reading = Callable[[Callable[[PageReader], Coroutine[Any, Any, ResultT]]], ResultT]


@pytest.fixture(scope="module")
def read() -> Iterator[Reading[Any]]:
    """Runs work with a reader that the tests share which want nothing but text: its process starts once."""
    loop, reader = BackgroundLoop(), PageReader(processes=1)

    async def close() -> None:
        reader.close()

    yield lambda work: loop.run(work(reader))
    loop.run(close())


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


async def outcome(reader: PageReader, given: Fetched) -> PageText | FailureKind:
    try:
        return await reader.read(given)
    except SearchError as error:
        return error.failure.kind


def test_a_page_is_its_article_without_what_stands_around_it() -> None:
    async def work(reader: PageReader) -> None:
        found = await reader.read(page(HTML))
        assert found.title == "Velm tower" and ARTICLE in found.text
        assert not any(word in found.text for word in ("Log in", "alert", "Copyright"))

    reading(work)


AS_BROWSERS = {
    "gb2312": ("朱镕基 said 囍", "gbk"),
    "GB_2312-80": ("朱镕基 said 囍", "gbk"),
    "gbk": ("a rare 㐂 and \U00020000", "gb18030"),
    "x-gbk": ("朱镕基", "gbk"),
    "chinese": ("朱镕基", "gbk"),
    "euc-kr": ("똠방각하", "cp949"),
    "ks_c_5601-1987": ("똠방각하", "cp949"),
    "shift_jis": ("株式会社 ㈱ ① 髙", "cp932"),
    "windows-31j": ("㈱ ①", "cp932"),
    "big5": ("我哋嘅嘢", "big5hkscs"),
    "iso-8859-1": ("“grés” 5 €", "cp1252"),
    "us-ascii": ("“grés” 5 €", "cp1252"),
    "latin5": ("İstanbul ş", "cp1254"),
    "tis-620": ("ภาษาไทย …", "cp874"),
    "koi8-r": ("Москва", "koi8-r"),
    "x-cp1251": ("Москва", "cp1251"),
    "utf-16": ("grés 日本", "utf-16-le"),
    " UTF8 ": ("grés 日本", "utf-8"),
    "euc-jp": ("日本語", "euc-jp"),
    "iso-2022-jp": ("日本語", "iso2022-jp"),
}
"""Labels, what pages with them hold that the codec of that name in Python does not, and how browsers decode it."""
NO_LABELS = [
    *("undefined", "idna", "punycode", "utf-7", "unicode_escape", "raw_unicode_escape", "base64", "hex", "rot13"),
    *("bz2", "zlib", "uu", "mbcs", "no-such-charset", "", "é", "x" * 5000, "utf-8\x00", "../utf-8", None),
]


def html_of(words: str, head: str = "") -> str:
    return f"<html><head>{head}<title>T</title></head><body><p>{ARTICLE} {words}. {ARTICLE}</p></body></html>"


async def texts(reader: PageReader, body: bytes, charset: str | None) -> list[str]:
    """Of a page, and of a plain text."""
    found = [await outcome(reader, page(body, kind, charset)) for kind in ("text/html", "text/plain")]
    return [one.text if isinstance(one, PageText) else str(one) for one in found]


def test_the_server_s_label_means_what_it_means_to_a_browser(read: Reading[None]) -> None:
    async def work(reader: PageReader) -> None:
        for label, (words, codec) in AS_BROWSERS.items():
            for text in await texts(reader, html_of(words).encode(codec), label):
                assert words in text, label

    read(work)


def test_what_is_no_label_is_as_if_there_were_none(read: Reading[None]) -> None:
    """Python has codecs which decode no text, raise out of any error handler, or take the square of the length."""

    async def work(reader: PageReader) -> None:
        for label in NO_LABELS:
            for text in await texts(reader, html_of("grés blême 日本").encode(), label):
                assert "grés blême 日本" in text, label
        start = time.monotonic()
        for label in ("punycode", "idna"):
            await texts(reader, b"a" * 240_000, label)
        assert time.monotonic() - start < 10

    read(work)


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (b"\xef\xbb\xbf" + html_of("grés").encode(), "gb2312"),
        (b"\xff\xfe" + html_of("grés").encode("utf-16-le"), "utf-8"),
        (b"\xfe\xff" + html_of("grés").encode("utf-16-be"), "iso-8859-1"),
        (b"\xff\xfe" + html_of("grés").encode("utf-16-le"), None),
        (b"\xef\xbb\xbf" + html_of("grés").encode(), "undefined"),
    ],
)
def test_a_byte_order_mark_wins_over_the_server(body: bytes, label: str | None, read: Reading[list[str]]) -> None:
    found = read(lambda reader: texts(reader, body, label))
    assert all("grés" in text and "\ufeff" not in text for text in found)


@pytest.mark.parametrize(
    ("head", "codec"),
    [
        ('<meta charset="gb2312">', "gbk"),
        ("<META CHARSET = gbk >", "gbk"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=GB2312">', "gbk"),
        ("<meta content='text/html;charset=\"gbk\"' http-equiv=content-type>", "gbk"),
        ('<!-- <meta charset="koi8-r"> --><meta charset="gb2312">', "gbk"),
        ('<meta name="description" content="charset=koi8-r"><meta charset="gb2312">', "gbk"),
        ('<meta charset="gb2312"><meta charset="koi8-r">', "gbk"),
        ('<meta charset="utf-16">', "utf-8"),
        ("<meta charset=utf-8>", "utf-8"),
    ],
)
def test_a_page_declares_its_own_characters_where_the_server_does_not(
    head: str, codec: str, read: Reading[None]
) -> None:
    words = "朱镕基 said 囍"

    async def work(reader: PageReader) -> None:
        body = html_of(words, head).encode(codec)
        assert words in (await reader.read(page(body, charset=None))).text
        assert words in (await reader.read(page(body, charset="punycode"))).text
        said = html_of(words, '<meta charset="koi8-r">').encode(codec)
        assert words in (await reader.read(page(said, charset=codec))).text, "the server wins"

    read(work)


def test_an_xml_declaration_counts_too(read: Reading[PageText]) -> None:
    body = ('<?xml version="1.0" encoding="gb2312"?>\n' + html_of("朱镕基")).encode("gbk")
    for charset in (None, "gbk"):
        found = read(lambda reader, said=charset: reader.read(page(body, "application/xhtml+xml", said)))
        assert "朱镕基" in found.text


@pytest.mark.parametrize("label", ["hz-gb-2312", "iso-2022-kr", "iso-2022-cn"])
def test_what_browsers_refuse_to_decode_has_no_text(label: str, read: Reading[PageText | FailureKind]) -> None:
    for kind in ("text/html", "text/plain"):
        given = page(html_of("grés"), kind, label)
        assert read(lambda reader, given=given: outcome(reader, given)) is FailureKind.BAD_RESPONSE


def test_plain_text_needs_no_parser(read: Reading[PageText]) -> None:
    found = read(lambda reader: reader.read(page("words <b>as</b> they are", "text/plain", charset="nonsense")))
    assert found == PageText("", "words <b>as</b> they are")


@pytest.mark.parametrize(
    "body", [b"", b"<html></html>", b"\x00" * 5000, b"<" * 5000, b"\xff\xfe" * 999, b"<!--" * 999]
)
def test_a_page_without_text_is_a_bad_response(body: bytes, read: Reading[PageText | FailureKind]) -> None:
    assert read(lambda reader: outcome(reader, page(body, charset=None))) is FailureKind.BAD_RESPONSE


def test_a_page_that_burns_time_costs_itself_only() -> None:
    async def work(reader: PageReader) -> None:
        slow = page("<table>" + "<tr><td>cell</td><td><p>word " * 30_000)
        start = time.monotonic()
        first = await asyncio.gather(outcome(reader, slow), outcome(reader, page(HTML)))
        assert first[0] is FailureKind.TIMEOUT and isinstance(first[1], PageText), first
        assert time.monotonic() - start < 20
        assert isinstance(await outcome(reader, page(HTML)), PageText), "a new worker has taken its place"

    reading(work, processes=2, timeout_s=1.0)


def test_a_worker_that_dies_is_replaced() -> None:
    async def work(reader: PageReader) -> None:
        before = set(_children())
        assert isinstance(await outcome(reader, page(HTML)), PageText)
        [worker] = set(_children()) - before
        os.kill(worker, 9)
        assert await outcome(reader, page(HTML)) is FailureKind.BAD_RESPONSE
        assert isinstance(await outcome(reader, page(HTML)), PageText)

    reading(work)


def test_a_cancelled_read_leaves_no_worker_busy() -> None:
    async def work(reader: PageReader) -> None:
        slow = page("<table>" + "<tr><td>cell</td><td><p>word " * 30_000)
        task = asyncio.ensure_future(reader.read(slow))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
        assert isinstance(await outcome(reader, page(HTML)), PageText)

    reading(work, processes=1, timeout_s=30.0)


def test_a_worker_has_no_key_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", "sesame")

    async def work(reader: PageReader) -> None:
        before = set(_children())
        await reader.read(page(HTML))
        [worker] = set(_children()) - before
        assert "sesame" not in str(psutil.Process(worker).environ())

    reading(work)


def test_workers_take_no_more_memory_than_they_may() -> None:
    assert page_text.MEMORY <= 1 << 30

    async def work(reader: PageReader) -> None:
        before = set(_children())
        await reader.read(page(HTML))
        [worker] = set(_children()) - before
        assert psutil.Process(worker).rlimit(psutil.RLIMIT_AS) == (page_text.MEMORY, page_text.MEMORY)

    reading(work)


def test_long_pages_are_cut() -> None:
    body = HTML.encode() + b"<p>" + b"x" * page_text.MAX_HTML
    assert isinstance(reading(lambda reader: outcome(reader, page(body))), PageText)
