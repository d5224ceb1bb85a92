import asyncio
from typing import Any

import pytest
from PIL import Image

from mmsearch_trl.core.observation import FailureKind, ImageQuery, Observation
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.upstream_tools import UpstreamImageSearch, UpstreamTextSearch


PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
GREY = Image.new("RGB", (64, 64), (100, 100, 100))
QUERY = ImageQuery(GREY, data_id="fvqa_train_1", url="https://i.example/a.jpg")


def image_search(reply: Any) -> Observation:
    runtime = SearchRuntime(UpstreamImageSearch(lambda url: reply), None)
    return asyncio.run(runtime.image_search(QUERY))


def text_search(reply: Any) -> Observation:
    runtime = SearchRuntime(None, UpstreamTextSearch(lambda query: reply))
    return asyncio.run(runtime.text_search("who?"))


def kind(observation: Observation) -> FailureKind | None:
    assert observation.raw is None
    return observation.failure.kind if observation.failure else None


def test_the_functions_get_the_address_and_the_query_and_their_text_is_handed_on() -> None:
    asked = []

    def call_image_search(image_url: str) -> tuple[str, list[Image.Image], dict[str, object]]:
        asked.append(image_url)
        return f"1. image: {PLACE}\ntitle: a\n", [GREY.convert("L")], {"success": True, "num_images": 1}

    def call_text_search(text_query: str) -> tuple[str, dict[str, object]]:
        asked.append(text_query)
        return "1. (link) summary", {"success": True, "num_results": 1}

    async def both() -> tuple[Observation, Observation]:
        runtime = SearchRuntime(UpstreamImageSearch(call_image_search), UpstreamTextSearch(call_text_search))
        return await runtime.image_search(QUERY), await runtime.text_search("a question")

    image, text = asyncio.run(both())
    assert asked == ["https://i.example/a.jpg", "a question"]
    assert image.raw is not None and image.raw.text == f"1. image: {PLACE}\ntitle: a\n"
    assert [(i.mode, i.size) for i in image.raw.images] == [("RGB", (64, 64))]
    assert text.raw is not None and text.raw.text == "1. (link) summary" and text.hits == ()


@pytest.mark.parametrize(
    ("text", "images"),
    [(PLACE, []), ("no place", [GREY]), (PLACE * 2, [GREY]), (PLACE + "<|image_pad|>", [GREY]), ("x", "yy")],
)
def test_placeholders_and_images_that_disagree_are_a_bad_response(text: str, images: Any) -> None:
    assert kind(image_search((text, images, {"success": True}))) is FailureKind.BAD_RESPONSE


def test_a_placeholder_in_a_text_result_is_a_bad_response() -> None:
    assert kind(text_search((f"page {PLACE}", {"success": True}))) is FailureKind.BAD_RESPONSE


@pytest.mark.parametrize(
    "reply",
    [
        ("fine", {"success": False}),
        ("[Text Search Results] There is an error encountered in performing search.", {"success": True}),
        ("\n[Text Search Results] There is an error encountered in performing search. Anything", {}),
    ],
)
def test_a_reported_or_written_error_is_a_failure(reply: Any) -> None:
    assert kind(text_search(reply)) is FailureKind.UNAVAILABLE


def test_an_image_tools_error_sentence_is_a_failure() -> None:
    reply = ("[Image Search Results] There is an error encountered in performing search.", [], {"success": True})
    assert kind(image_search(reply)) is FailureKind.UNAVAILABLE


@pytest.mark.parametrize("reply", [None, "text", ("text",), ("text", {}, {}), (None, {})])
def test_a_reply_of_another_shape_is_a_bad_response(reply: Any) -> None:
    assert kind(text_search(reply)) is FailureKind.BAD_RESPONSE


def test_the_fingerprint_names_the_function_unless_one_is_given() -> None:
    assert UpstreamTextSearch(text_search).fingerprint.endswith("test_upstream_tools.text_search")
    assert UpstreamTextSearch(text_search, fingerprint="v2").fingerprint == "v2"
