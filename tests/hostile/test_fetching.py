"""Whatever a server does, a fetch ends in time with bytes that were asked for, or with a typed failure."""

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from misbehaving import Answer, Site, Write, redirect, response, serving

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import Failure, FailureKind
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.web.address_rules import AddressRules
from mmsearch_trl.search.web.addresses import is_public
from mmsearch_trl.search.web.fetch import IMAGE_TYPES, MAX_REDIRECTS, TEXT_TYPES, Fetched, Fetcher


LIMIT = 100_000
TIMEOUT_S = 1.0
PAGE = b"<p>A page.</p>"
Outcome = Fetched | Failure


async def _fetch(fetcher: Fetcher, url: str, types: tuple[str, ...] = TEXT_TYPES) -> Outcome:
    try:
        return await fetcher.fetch(url, types)
    except SearchError as error:
        return error.failure


def _open(lookup: Any = None, **options: Any) -> Fetcher:
    """A fetcher for which this machine's loopback address is a public one."""

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    settings = {"timeout_s": TIMEOUT_S, "max_bytes": LIMIT, "ports": None} | options
    return Fetcher(
        allowed=lambda address: address == "127.0.0.1" or is_public(address), lookup=lookup or here, **settings
    )


def fetch(answers: Mapping[str, Answer] | Answer, url: str = "http://pages.example:{port}/", **options: Any) -> Any:
    """The outcome of one fetch from a server with these answers, and what the server saw."""

    async def run() -> tuple[Outcome, Site]:
        types = options.pop("types", TEXT_TYPES)
        async with serving(answers) as site:
            fetcher = _open(**options)
            try:
                return await _fetch(fetcher, url.format(port=site.port), types), site
            finally:
                await fetcher.close()

    return asyncio.run(run())


def test_a_page_is_fetched_from_the_checked_address_under_its_own_name() -> None:
    outcome, site = fetch(
        response(PAGE, Content_Type="text/html; charset=latin-1"), "http://pages.example:{port}/a?b=1#c"
    )
    assert isinstance(outcome, Fetched)
    assert (outcome.body, outcome.content_type, outcome.charset) == (PAGE, "text/html", "latin-1")
    assert outcome.url.endswith("/a?b=1") and site.requests == ["/a?b=1"]
    assert site.hosts == [f"pages.example:{site.port}"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("where", ["/there", "http://other.example:{port}/there", "//other.example:{port}/there"])
def test_redirects_are_followed(status: str, where: str) -> None:
    async def run() -> Outcome:
        answers: dict[str, Answer] = {"/there": response(PAGE)}
        async with serving(answers) as site:
            answers["/"] = redirect(where.format(port=site.port), status)
            fetcher = _open()
            try:
                return await _fetch(fetcher, f"http://pages.example:{site.port}/")
            finally:
                await fetcher.close()

    outcome = asyncio.run(run())
    assert isinstance(outcome, Fetched) and outcome.body == PAGE and outcome.url.endswith("/there")


@pytest.mark.parametrize(("hops", "arrives"), [(MAX_REDIRECTS, True), (MAX_REDIRECTS + 1, False)])
def test_ten_hops_and_no_more(hops: int, arrives: bool) -> None:
    answers: dict[str, Answer] = {f"/{hop}": redirect(f"/{hop + 1}") for hop in range(hops)}
    outcome, site = fetch(answers | {f"/{hops}": response(PAGE)}, "http://pages.example:{port}/0")
    assert isinstance(outcome, Fetched) is arrives
    assert len(site.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data/", "http://127.0.0.2/", "http://[::1]/", "http://[::ffff:7f00:1]/",
        "http://2130706434/", "http://0x7f000002/", "http://127.2/", "http://0177.0.0.2/", "file:///etc/passwd",
        "ftp://pages.example/", "gopher://pages.example/", "data:text/html,hello", "javascript:alert(1)",
        "http://user:word@pages.example/", "http://user@127.0.0.1/", "",
        "http://10.0.0.1", "http://metadata.example/", "http://①②⑦.⓪.⓪.②/", "http://[fe80::1%25lo]/", "http://a\tb/",
    ],
)  # fmt: skip
def test_a_redirect_leads_nowhere_that_a_fetch_would_not_go(where: str) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return {"pages.example": ["127.0.0.1"], "metadata.example": ["169.254.169.254"]}[host]

    outcome, site = fetch({"/": redirect(where)}, lookup=lookup)
    assert isinstance(outcome, Failure), outcome
    assert outcome.kind in (FailureKind.BLOCKED, FailureKind.BAD_RESPONSE)
    assert site.requests == ["/"]


@pytest.mark.parametrize("where", ["http://", "http:///etc", "//", "///127.0.0.2/", "\\\\127.0.0.2\\", "/\\127.0.0.2"])
def test_a_redirect_without_a_host_stays_on_the_one_that_sent_it(where: str) -> None:
    outcome, site = fetch({"/": redirect(where)})
    assert isinstance(outcome, Failure)
    assert set(site.hosts) == {f"pages.example:{site.port}"}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "https://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0/", "http://127.1/",
        "http://2130706433/", "http://0x7f.0x0.0x0.0x1/", "http://0177.1/", "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://169.254.169.254/latest/",
        "http://pages.example:22/", "http://pages.example:6379/", "http://pages.example:99999/", "file:///etc/passwd",
        "http://u:p@pages.example/", "pages.example", "/etc/passwd", "", "http://", "http://exa mple/", "x" * 5000,
        "http://pages.example/" + "a" * 5000, "http://pages.example/\r\nX: y", "http://pages.example/\x00",
        "http://\uff11\uff12\uff17.0.0.1/", "http://127。0。0。1/", "http://[::]/", "http://0.0.0.0/", "http://[::1%25lo]/",
        "unix:///run/docker.sock", "http://pages.example.\u200b/",
    ],
)  # fmt: skip
def test_nothing_of_this_machine_or_network_is_asked(url: str) -> None:
    """As a user has it: only public addresses, only the ports of the web."""

    async def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def run() -> Outcome:
        fetcher = Fetcher(timeout_s=TIMEOUT_S, lookup=lookup)
        try:
            return await _fetch(fetcher, url)
        finally:
            await fetcher.close()

    outcome = asyncio.run(run())
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.BLOCKED, outcome
    assert "127.0.0.1" not in outcome.message


def test_a_name_that_changes_its_address_gains_nothing() -> None:
    """DNS rebinding: public when checked, local when dialled. There is one lookup for both."""
    asked = []

    async def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    outcome, _ = fetch(response(PAGE), lookup=lookup)
    assert isinstance(outcome, Fetched) and asked == ["pages.example"]
    asked.clear()
    outcome, site = fetch({"/": redirect("http://pages.example:1/again")}, lookup=lookup)
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.BLOCKED
    assert asked == ["pages.example"] * 2 and site.requests == ["/"]


@pytest.mark.parametrize("host", ["answers.example", "www.answers.example", "ANSWERS.example.", "a.b.answers.example"])
def test_denied_hosts_are_not_asked(host: str) -> None:
    outcome, site = fetch(response(PAGE), f"http://{host}:{{port}}/", denied_hosts=["Answers.example"])
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.BLOCKED and not site.requests


ENTRIES = {
    "answers.example": ["answers.example", "www.answers.example", "ANSWERS.example."],
    " Answers.Example. ": ["answers.example", "a.answers.example"],
    "*.answers.example": ["answers.example", "www.answers.example"],
    ".answers.example": ["answers.example", "www.answers.example"],
    "https://answers.example": ["answers.example"],
    "https://*.answers.example:8443/datasets?x=1#y": ["answers.example", "www.answers.example"],
    "answers.example:8080": ["answers.example"],
    "answers.example/datasets/bench": ["answers.example"],
    "bücher.example": ["bücher.example", "xn--bcher-kva.example", "www.BÜCHER.example"],
    "xn--bcher-kva.example": ["bücher.example"],
    "https://*.例え.jp": ["例え.jp", "a.xn--r8jz45g.jp", "例え。jp"],
    "\uff41nswers.example": ["answers.example", "\uff41nswer\uff53.example"],
    "93.184.216.34": ["93.184.216.34"],
    "http://93.184.216.34:80/": ["93.184.216.34"],
    "2606:4700:4700::1111": ["[2606:4700:4700::1111]", "[2606:4700:4700:0:0:0:0:1111]"],
    "[2606:4700:4700:0::1111]:443": ["[2606:4700:4700::1111]"],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_of_denied_hosts_may_be_written_in_any_way(entry: str) -> None:
    rules = AddressRules([entry])
    for host in ENTRIES[entry]:
        with pytest.raises(SearchError, match="denied_hosts"):
            rules.check(f"https://{host}/a")
    for other in ("example.org", "notanswers.example", "answers.example.org", "1.1.1.1"):
        rules.check(f"https://{other}/a")


@pytest.mark.parametrize("entry", ["", "  ", "*", "*.", "https://", "://", "a.*.example", "two words", "http://[x"])
def test_an_entry_that_names_no_host_is_named(entry: str) -> None:
    for make in (lambda: AddressRules([entry]), lambda: SearchConfig(denied_hosts=[entry])):
        with pytest.raises(UserError, match=r"search\.denied_hosts: .* names no host"):
            make()


def test_a_name_that_ends_alike_is_another_host() -> None:
    outcome, _ = fetch(response(PAGE), "http://notanswers.example:{port}/", denied_hosts=["answers.example"])
    assert isinstance(outcome, Fetched)


BOMB = gzip.compress(bytes(100_000_000), 1)
DEFLATED_BOMB = zlib.compress(bytes(100_000_000), 1)


async def _endless(write: Write) -> None:
    await write(response(Content_Length=""))
    while True:
        await write(b"x" * 65536)


async def _slow_drip(write: Write) -> None:
    await write(response(Content_Length="1000"))
    for _ in range(1000):
        await write(b"x")
        await asyncio.sleep(0.05)


async def _slow_head(write: Write) -> None:
    for byte in response(PAGE):
        await write(bytes([byte]))
        await asyncio.sleep(0.05)


async def _silent(write: Write) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(response(b"x" * (LIMIT + 1)), FailureKind.TOO_LARGE, id="longer than the limit"),
        pytest.param(response(Content_Length="1000000000"), FailureKind.TOO_LARGE, id="says that it has 1 GB"),
        pytest.param(_endless, FailureKind.TOO_LARGE, id="endless"),
        pytest.param(
            response(BOMB, Content_Encoding="gzip", Content_Length=""), FailureKind.TOO_LARGE, id="gzip bomb"
        ),
        pytest.param(
            response(DEFLATED_BOMB, Content_Encoding="deflate", Content_Length=""),
            FailureKind.TOO_LARGE,
            id="deflate bomb",
        ),
        pytest.param(_slow_drip, FailureKind.TIMEOUT, id="drips"),
        pytest.param(_slow_head, FailureKind.TIMEOUT, id="drips its header"),
        pytest.param(_silent, FailureKind.TIMEOUT, id="never answers"),
        pytest.param(b"", FailureKind.UNAVAILABLE, id="hangs up"),
        pytest.param(b"\x00\xff garbage\r\n\r\n", FailureKind.BAD_RESPONSE, id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: " + b"a" * 100_000, FailureKind.BAD_RESPONSE, id="endless header"),
        pytest.param(response(PAGE, Content_Length="500"), FailureKind.BAD_RESPONSE, id="cut off"),
        pytest.param(response(PAGE, Content_Length="-5"), FailureKind.BAD_RESPONSE, id="negative length"),
        pytest.param(response(PAGE, Content_Length="5, 6"), FailureKind.BAD_RESPONSE, id="two lengths"),
        pytest.param(
            response(b"zz\r\n", Transfer_Encoding="chunked", Content_Length=""),
            FailureKind.BAD_RESPONSE,
            id="broken chunk",
        ),
        pytest.param(response(PAGE, Content_Encoding="gzip"), FailureKind.BAD_RESPONSE, id="not gzip"),
        pytest.param(
            response(gzip.compress(PAGE)[:-9], Content_Encoding="gzip"), FailureKind.BAD_RESPONSE, id="half gzip"
        ),
        pytest.param(response(PAGE, Content_Encoding="br"), FailureKind.BAD_RESPONSE, id="brotli"),
        pytest.param(response(PAGE, Content_Encoding="gzip, gzip"), FailureKind.BAD_RESPONSE, id="gzip twice"),
        pytest.param(response(PAGE, Content_Type=""), FailureKind.BAD_RESPONSE, id="no content type"),
        pytest.param(response(PAGE, Content_Type="application/x-sh"), FailureKind.BAD_RESPONSE, id="a script"),
        pytest.param(response(PAGE, Content_Type="image/png"), FailureKind.BAD_RESPONSE, id="an image"),
        pytest.param(response(status="204 No Content"), FailureKind.UNAVAILABLE, id="204"),
        pytest.param(response(status="304 Not Modified"), FailureKind.UNAVAILABLE, id="304"),
        pytest.param(response(status="401 Unauthorized"), FailureKind.BLOCKED, id="401"),
        pytest.param(response(status="403 Forbidden"), FailureKind.BLOCKED, id="403"),
        pytest.param(response(status="404 Not Found"), FailureKind.UNAVAILABLE, id="404"),
        pytest.param(response(status="429 Too Many"), FailureKind.RATE_LIMITED, id="429"),
        pytest.param(response(status="500 Oops"), FailureKind.UNAVAILABLE, id="500"),
        pytest.param(redirect("/"), FailureKind.BLOCKED, id="redirects to itself"),
    ],
)
def test_a_bad_answer_is_a_typed_failure_in_time(answer: Answer, kind: FailureKind) -> None:
    start = time.monotonic()
    outcome, site = fetch(answer)
    assert isinstance(outcome, Failure), outcome
    assert outcome.kind is kind, outcome
    assert time.monotonic() - start < TIMEOUT_S + 1.0
    assert site.sent < 50 * LIMIT, "bytes that nobody wanted were sent on"


@pytest.mark.parametrize(
    ("encode", "coding"),
    [
        (gzip.compress, "gzip"),
        (gzip.compress, "x-gzip"),
        (zlib.compress, "deflate"),
        (lambda data: zlib.compress(data)[2:-4], "deflate"),
        (lambda data: data, "identity"),
    ],
)
def test_compressed_pages_are_read(encode: Callable[[bytes], bytes], coding: str) -> None:
    page = PAGE * 1000
    outcome, _ = fetch(response(encode(page), Content_Encoding=coding))
    assert isinstance(outcome, Fetched) and outcome.body == page


def test_pictures_are_fetched_where_they_are_asked_for() -> None:
    outcome, _ = fetch(response(b"\x89PNG", Content_Type="image/png"), types=IMAGE_TYPES)
    assert isinstance(outcome, Fetched) and outcome.content_type == "image/png"


def test_a_bomb_is_not_held_in_memory() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, _ = fetch(response(BOMB, Content_Encoding="gzip", Content_Length=""))
    assert isinstance(outcome, Failure)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_no_proxy_of_this_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    outcome, _ = fetch(response(PAGE))
    assert isinstance(outcome, Fetched)


def test_a_host_that_is_not_there_is_unavailable_and_its_address_is_not_told() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        raise OSError("no such host: secret.example")

    outcome, _ = fetch(response(PAGE), "http://secret.example:{port}/?key=sesame", lookup=lookup)
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.UNAVAILABLE
    assert "secret" not in outcome.message and "sesame" not in outcome.message


def test_fetches_do_not_wait_for_each_other() -> None:
    async def slow(write: Write) -> None:
        await asyncio.sleep(0.3)
        await write(response(PAGE))

    async def run() -> float:
        async with serving(slow) as site:
            fetcher = _open()
            start = time.monotonic()
            outcomes = await asyncio.gather(
                *(_fetch(fetcher, f"http://pages.example:{site.port}/{i}") for i in range(100))
            )
            await fetcher.close()
            assert all(isinstance(outcome, Fetched) for outcome in outcomes)
            return time.monotonic() - start

    assert asyncio.run(run()) < 5 * 0.3
