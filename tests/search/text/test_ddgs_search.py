"""What the `ddgs` package gives and raises, told to us in our own types. Nothing is asked of the internet."""

from typing import Any

import ddgs.ddgs
import pytest
from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.text.ddgs_search import ENGINES, DdgsSearch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the package; its answer, or what it raises, is the first entry."""
    calls: list[Any] = [[]]

    def text(self: Any, query: str, **options: Any) -> list[dict[str, Any]]:
        calls.append((query, options))
        if isinstance(calls[0], Exception):
            raise calls[0]
        return calls[0]

    monkeypatch.setattr(ddgs.ddgs.DDGS, "text", text)
    return calls


def test_rows_are_titles_snippets_and_addresses(asked: list[Any]) -> None:
    asked[0] = [{"title": "Velm", "body": "A town.", "href": "http://a.example"}, {"title": None}, {"body": "b"}] * 2
    assert DdgsSearch().search("who", 2) == [TextHit("Velm", "A town.", "http://a.example"), TextHit("", "b")]
    assert asked[1] == ("who", {"region": "us-en", "max_results": 2, "backend": ENGINES})


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (DDGSException("No results found."), FailureKind.UNAVAILABLE),
        (DDGSException("DNSError https://duckduckgo.com/?q=sesame"), FailureKind.UNAVAILABLE),
        (TimeoutException("sesame"), FailureKind.TIMEOUT),
        (RatelimitException("sesame"), FailureKind.RATE_LIMITED),
    ],
)
def test_finding_nothing_is_a_failure_since_a_refusal_looks_the_same(
    asked: list[Any], raised: Exception, kind: FailureKind
) -> None:
    asked[0] = raised
    with pytest.raises(SearchError) as caught:
        DdgsSearch().search("sesame", 2)
    assert caught.value.failure.kind is kind and "sesame" not in caught.value.failure.message


def test_the_engines_that_are_named_exist() -> None:
    from ddgs.engines import ENGINES as KNOWN

    assert set(ENGINES.split(",")) <= set(KNOWN["text"])
