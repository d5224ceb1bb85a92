"""Summaries by a stand-in of a language model, and by words alone."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import response, serving

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.text.summarisers import ChatSummariser, excerpt


PAGE = (
    "Harwick is a town in the north. It has a market every week. The Velm tower was built in 1880.\n"
    "Its bell was cast in Oakham! Was it ever repaired? Nobody knows. Trains leave every hour."
)


def chat(body: Any) -> Any:
    async def run() -> Any:
        async with serving(response(json.dumps(body).encode(), Content_Type="application/json")) as site:
            summariser = ChatSummariser(f"http://127.0.0.1:{site.port}/v1", "small")
            try:
                return await summariser.summarise("when was it built", PAGE)
            except SearchError as error:
                return error.failure.kind
            finally:
                await summariser.close()
                assert site.requests == ["/v1/chat/completions"]

    return asyncio.run(run())


def saying(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


def test_a_model_s_words_without_its_thoughts() -> None:
    assert chat(saying(" Built in 1880. ")) == "Built in 1880."
    assert chat(saying("<think>It says\n1880.</think>\nBuilt in 1880.")) == "Built in 1880."


@pytest.mark.parametrize(
    "body",
    [{}, [], {"choices": []}, {"choices": [{}]}, saying(None), saying(""), saying("<think>only</think>"), saying(3)],
)
def test_an_answer_without_words_is_a_bad_response(body: Any) -> None:
    assert chat(body) is FailureKind.BAD_RESPONSE


def test_an_excerpt_has_the_sentences_that_answer_in_the_page_s_order() -> None:
    assert excerpt("When was the Velm tower built?", PAGE, 1) == "The Velm tower was built in 1880."
    both = excerpt("Velm tower bell cast", PAGE, 2)
    assert both == "The Velm tower was built in 1880. Its bell was cast in Oakham!"


def test_an_excerpt_of_a_page_that_says_nothing_about_it_is_its_beginning() -> None:
    assert excerpt("zebra", PAGE, 2) == "Harwick is a town in the north. It has a market every week."


@given(st.text(max_size=60), st.text(max_size=600), st.integers(1, 5))
def test_an_excerpt_is_made_of_the_page(question: str, page: str, count: int) -> None:
    found = excerpt(question, page, count)
    assert set(found.split()) <= set(page.split())
    assert bool(found) == bool(page.strip())
    assert excerpt(question, page, count) == found
