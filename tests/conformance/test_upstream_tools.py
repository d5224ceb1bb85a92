"""The tools of upstream's signature by which the recorded rollouts are replayed, and what becomes of their text."""

import asyncio
from typing import Any

import pytest
import tiny
from conformance.upstream_tools import PLACE, ReadyMade, ReadyMadeProtocol, UpstreamTools
from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import FailureKind, ImageQuery, Observation
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.prompt_files import Prompts


GREY = Image.new("RGB", (64, 64), (100, 100, 100))
QUERY = ImageQuery(GREY, data_id="fvqa_train_1", url="https://i.example/a.jpg")
CHAT = ChatEncoder(tiny.qwen25().processor, upstream_framing=True)
[TASK] = tiny.tasks(1)


def image_search(reply: Any) -> Observation:
    return asyncio.run(UpstreamTools(lambda url: reply, lambda query: reply).image_search(QUERY))


def text_search(reply: Any) -> Observation:
    return asyncio.run(UpstreamTools(lambda url: reply, lambda query: reply).text_search("who?"))


def kind(observation: Observation) -> FailureKind | None:
    assert not isinstance(observation, ReadyMade)
    return observation.failure.kind if observation.failure else None


def test_the_functions_get_the_address_and_the_query_and_their_text_is_handed_on() -> None:
    image = image_search((f"1. image: {PLACE}\ntitle: a\n", [GREY], {"success": True, "num_images": 1}))
    text = text_search(("1. (link) summary", {"success": True, "num_results": 1}))
    assert isinstance(image, ReadyMade) and image.text == f"1. image: {PLACE}\ntitle: a\n" and image.images == (GREY,)
    assert isinstance(text, ReadyMade) and text.text == "1. (link) summary" and text.images == ()


@pytest.mark.parametrize(
    ("text", "images"), [(PLACE, []), ("no place", [GREY]), (PLACE * 2, [GREY]), (PLACE + "<|image_pad|>", [GREY])]
)
def test_placeholders_and_images_that_disagree_are_a_bad_response(text: str, images: Any) -> None:
    assert kind(image_search((text, images, {"success": True}))) is FailureKind.BAD_RESPONSE


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


@pytest.mark.parametrize("reply", [None, "text", ("text",), ("text", {}, {}), (None, {}), (f"page {PLACE}", {})])
def test_a_reply_of_another_shape_is_a_bad_response(reply: Any) -> None:
    assert kind(text_search(reply)) is FailureKind.BAD_RESPONSE


def said(text: str, tool: ActionKind, after_text: str = "AFTER-TXT") -> str:
    prompts = Prompts(
        first_turn="{image}{question}", after_image_search="AFTER-IMG", after_text_search=after_text, forced_answer=""
    )
    protocol = ReadyMadeProtocol(CHAT.processor, prompts)
    reply = protocol.reply(ReadyMade(tool=tool, text=text), TASK, [CHAT.turn_end_id])
    return CHAT.tokenizer.decode(reply.token_ids)


@pytest.mark.parametrize(
    ("tool", "text", "after"),
    [
        (ActionKind.TEXT_SEARCH, "see [Text Search Results] x", "AFTER-TXT"),
        (ActionKind.TEXT_SEARCH, "[Image Search Results] and [Text Search Results] x", "AFTER-IMG"),
        (ActionKind.IMAGE_SEARCH, "[Text Search Results] x", "AFTER-TXT"),
        (ActionKind.IMAGE_SEARCH, "x [Image Search Results] There is an error encountered x", None),
        (ActionKind.TEXT_SEARCH, "plain", None),
    ],
)
def test_ready_made_text_is_framed_where_it_has_a_heading(tool: ActionKind, text: str, after: str | None) -> None:
    reply = said(text, tool)
    assert (after is None) == (f"user\n{text}<|im_end|>" in reply)
    assert after is None or (f"<information>{text}</information>" in reply and f"\n{after}<|im_end|>" in reply)


def test_upstream_hands_text_on_where_no_prompt_is_set() -> None:
    text = "[Text Search Results] x"
    assert f"user\n{text}<|im_end|>" in said(text, ActionKind.TEXT_SEARCH, after_text="")
